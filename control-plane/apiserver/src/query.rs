//! Query strings as clients really write them: empty parts, `1` for true, repeated and unknown parameters. Nothing of
//! this is refused; only values that are understood to be wrong are.

use control_plane_registry::errors::Result;
use control_plane_registry::selector::{FieldSelector, LabelSelector};
use control_plane_registry::{
    ApiError, DeleteOptions, FieldValidation, Kind, ListOptions, Propagation, VersionMatch,
    WatchOptions, WriteOptions, options,
};

/// The parameters of a request, in their order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: Option<&str>) -> Self {
        let parts = text.unwrap_or_default().split('&');
        let pairs = parts.filter(|p| !p.is_empty()).map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode_form(name), decode_form(value))
        });
        Self(pairs.collect())
    }

    /// The last value of a parameter; empty when it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.all(name).last().unwrap_or_default()
    }

    /// All values of a parameter, in their order.
    pub fn all<'a>(&'a self, name: &str) -> std::vec::IntoIter<&'a str> {
        let found = self.0.iter().filter(|(n, _)| n == name);
        let values: Vec<&str> = found.map(|(_, value)| value.as_str()).collect();
        values.into_iter()
    }

    pub fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// Go's `strconv.ParseBool`; a parameter without value is true.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name)
            && !matches!(
                self.get(name),
                "0" | "f" | "F" | "false" | "False" | "FALSE"
            )
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!(
                    "invalid value {text:?} of parameter {name}: give a number"
                ))
            }),
        }
    }

    pub fn resource_version(&self) -> Result<Option<u64>> {
        self.number("resourceVersion")
    }

    /// Options of a write by a client with this `User-Agent`; `applies` for server-side apply.
    pub fn write_options(&self, user_agent: &str, applies: bool) -> Result<WriteOptions> {
        let given = self.get("fieldManager");
        let agent = user_agent.split('/').next().unwrap_or_default();
        let manager = match (given, agent) {
            ("", "") => "unknown",
            ("", agent) => agent,
            (given, _) => given,
        };
        let force = self.flag("force");
        let options = WriteOptions {
            dry_run: options::dry_run(self.all("dryRun"))?,
            field_validation: FieldValidation::parse(self.get("fieldValidation"))?,
            manager: manager.chars().take(128).collect(),
            apply: applies.then_some(force),
            admission: None,
        };
        options.validate(given, force)?;
        Ok(options)
    }

    pub fn list_options(&self, kind: &Kind) -> Result<ListOptions> {
        Ok(ListOptions {
            labels: LabelSelector::parse(self.get("labelSelector"))?,
            fields: FieldSelector::parse(kind, self.get("fieldSelector"))?,
            limit: usize::try_from(self.number("limit")?.unwrap_or(0)).unwrap_or(usize::MAX),
            continue_token: self.get("continue").to_owned(),
            resource_version: self.resource_version()?,
            version_match: VersionMatch::parse(self.get("resourceVersionMatch"))?,
            send_initial_events: self.initial_events(),
        })
    }

    pub fn watch_options(&self, kind: &Kind, name: &str) -> Result<WatchOptions> {
        let mut fields = self.get("fieldSelector").to_owned();
        if !name.is_empty() {
            fields = format!("metadata.name={name},{fields}");
        }
        Ok(WatchOptions {
            labels: LabelSelector::parse(self.get("labelSelector"))?,
            fields: FieldSelector::parse(kind, &fields)?,
            resource_version: self.resource_version()?,
            version_match: VersionMatch::parse(self.get("resourceVersionMatch"))?,
            bookmarks: self.flag("allowWatchBookmarks"),
            send_initial_events: self.initial_events(),
        })
    }

    /// After how many seconds the client wants its watch to end.
    pub fn timeout_seconds(&self) -> Result<Option<u64>> {
        self.number("timeoutSeconds")
    }

    /// What the query adds to the options of the body.
    pub fn delete_options(&self, mut body: DeleteOptions) -> Result<DeleteOptions> {
        body.dry_run |= options::dry_run(self.all("dryRun"))?;
        let policy = Propagation::parse(self.get("propagationPolicy"))?;
        body.propagation = body.propagation.or(policy);
        if let Some(seconds) = self.number("gracePeriodSeconds")? {
            body.grace_period_seconds
                .get_or_insert(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        Ok(body)
    }

    fn initial_events(&self) -> Option<bool> {
        self.has("sendInitialEvents")
            .then(|| self.flag("sendInitialEvents"))
    }
}

fn decode_form(text: &str) -> String {
    decode(&text.replace('+', " "))
}

/// Percent-encoding of everything that could mean something in a path or a query (RFC 3986, section 2.3).
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Percent-decoding; what is not validly encoded stays as it is.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| {
            let digit = char::from(*bytes.get(i)?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        if bytes[at] == b'%'
            && let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2))
        {
            out.push(high << 4 | low);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_write() {
        let query = Query::parse(Some(
            "&limit=500&&labelSelector=a%3Db%2Cc&watch=1&timeout=32s&allowWatchBookmarks=true&pretty",
        ));
        assert_eq!(query.get("labelSelector"), "a=b,c");
        assert!(query.flag("watch") && query.flag("allowWatchBookmarks") && query.flag("pretty"));
        assert!(!query.flag("sendInitialEvents"));
        assert!(!Query::parse(Some("watch=false")).flag("watch"));
        assert_eq!(query.number("limit").unwrap(), Some(500));
        assert!(query.number("timeout").is_err());
        assert_eq!(decode("a%2fb%zz%"), "a/b%zz%");
        assert_eq!(decode(&encode("a b&c=%é/")), "a b&c=%é/");
    }
}
