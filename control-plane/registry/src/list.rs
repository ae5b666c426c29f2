//! List: from memory for the present, from the store's history for the past; in pages if asked.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control_plane_store::{KeyRange, StoreError};
use serde_json::{Value, json};

use crate::cache;
use crate::errors::{ApiError, Result};
use crate::kinds::Kind;
use crate::object::Object;
use crate::options::{ListOptions, VersionMatch};
use crate::registry::Registry;

/// A page of a list, or all of it.
#[derive(Clone, Debug)]
pub struct List {
    pub kind: &'static Kind,
    /// Sorted by namespace and name.
    pub items: Vec<Arc<Object>>,
    /// The revision that the list describes.
    pub revision: u64,
    /// Where the next page begins.
    pub continue_token: Option<String>,
    /// How many objects come after this page; not known with selectors.
    pub remaining: Option<usize>,
}

/// What a continue token says: the state that is listed, and where to go on.
struct Token {
    /// -1: whatever is there now, since the state is no longer known.
    revision: i64,
    /// A key without the kind's prefix.
    start: String,
}

/// The past is read in parts of at least so many objects.
const PAST_BATCH: usize = 500;

const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

impl Registry {
    /// Lists the objects of a namespace (empty: of all).
    ///
    /// # Errors
    /// 400 and 422 for options that make no sense, 410 when the state asked for is no longer known, 504 when it has
    /// not happened.
    pub async fn list(
        &self,
        kind: &'static Kind,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List> {
        options.validate()?;
        let scope = if namespace.is_empty() {
            String::new()
        } else {
            format!("{namespace}/")
        };
        if !options.continue_token.is_empty() {
            let token = Token::decode(&options.continue_token)?;
            let past = u64::try_from(token.revision).ok();
            return match past {
                Some(revision) => {
                    self.list_past(kind, &scope, options, revision, &token.start)
                        .await
                }
                None => {
                    self.settle(None).await?;
                    Ok(self.list_present(kind, &scope, options, &token.start))
                }
            };
        }
        let exact = match options.version_match {
            Some(VersionMatch::Exact) => true,
            Some(VersionMatch::NotOlderThan) => false,
            None => options.limit > 0,
        };
        match options.resource_version {
            Some(revision) if exact && revision > 0 => {
                self.list_past(kind, &scope, options, revision, "").await
            }
            version => {
                self.settle(version).await?;
                Ok(self.list_present(kind, &scope, options, ""))
            }
        }
    }

    fn list_present(
        &self,
        kind: &'static Kind,
        scope: &str,
        options: &ListOptions,
        start: &str,
    ) -> List {
        let (objects, revision) = self.cache().list(kind, scope, start);
        page(kind, objects, revision, options)
    }

    async fn list_past(
        &self,
        kind: &'static Kind,
        scope: &str,
        options: &ListOptions,
        revision: u64,
        start: &str,
    ) -> Result<List> {
        let from = if start > scope { start } else { scope };
        let mut range = KeyRange::prefix(&format!("{}{scope}", kind.prefix));
        range.start = format!("{}{from}", kind.prefix).into();
        // One more than the page holds tells whether there is another page.
        let wanted = match options.limit {
            0 => usize::MAX,
            limit => limit + 1,
        };
        let batch = if options.limit == 0 {
            0
        } else {
            wanted.max(PAST_BATCH)
        };
        let mut objects = Vec::new();
        let mut total = None;
        loop {
            let began = Instant::now();
            let answer = self
                .store()
                .range(range.clone(), batch, Some(revision))
                .await
                .map_err(|error| gone(error, start))?;
            self.observed("list", kind, began);
            total.get_or_insert(answer.count);
            let found = answer.kvs.iter().filter_map(|kv| cache::decode(kind, kv));
            objects.extend(found.filter(|o| options.selects(o)));
            match answer.kvs.last() {
                Some(last) if answer.more && objects.len() < wanted => {
                    range = range.after(&last.key);
                }
                _ => break,
            }
        }
        let mut list = page(kind, objects, revision, options);
        list.remaining = match (list.remaining, total) {
            (Some(_), Some(total)) => Some(total.saturating_sub(list.items.len())),
            _ => None,
        };
        Ok(list)
    }
}

/// What a reader of the past is told when the store cannot show it.
fn gone(error: StoreError, start: &str) -> ApiError {
    match error {
        StoreError::Compacted { .. } if !start.is_empty() => {
            let mut error = ApiError::expired(EXPIRED);
            let token = Token {
                revision: -1,
                start: start.to_owned(),
            };
            error.continue_token = Some(token.encode());
            error
        }
        StoreError::Compacted { .. } => {
            ApiError::expired("The resourceVersion for the provided list is too old.")
        }
        StoreError::FutureRevision { requested, current } => {
            ApiError::future_version(requested, current)
        }
        error => error.into(),
    }
}

/// Selects, and cuts after `limit` objects.
fn page(
    kind: &'static Kind,
    objects: Vec<Arc<Object>>,
    revision: u64,
    options: &ListOptions,
) -> List {
    let selects = !options.labels.is_empty() || !options.fields.is_empty();
    let mut items = objects;
    if selects {
        items.retain(|o| options.selects(o));
    }
    let mut list = List {
        kind,
        items,
        revision,
        continue_token: None,
        remaining: None,
    };
    if options.limit > 0 && list.items.len() > options.limit {
        let rest = list.items.split_off(options.limit);
        let last = &list.items[options.limit - 1];
        let key = kind.key(&last.namespace, &last.name);
        let token = Token {
            revision: i64::try_from(revision).unwrap_or(i64::MAX),
            start: format!("{}\0", key.trim_start_matches(kind.prefix)),
        };
        list.continue_token = Some(token.encode());
        list.remaining = (!selects).then_some(rest.len());
    }
    list
}

impl Token {
    fn encode(&self) -> String {
        let token = json!({"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.start});
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(text: &str) -> Result<Self> {
        let bad = |why: &str| ApiError::bad_request(format!("invalid continue token: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|e| bad(&e.to_string()))?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
        if token["v"] != "meta.k8s.io/v1" {
            return Err(bad("server does not recognize this encoded version"));
        }
        match (token["rv"].as_i64(), token["start"].as_str()) {
            (Some(revision), Some(start)) if revision != 0 && !start.is_empty() => Ok(Self {
                revision,
                start: start.to_owned(),
            }),
            _ => Err(bad("it has no revision or no start")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_was_made_of() {
        let token = Token {
            revision: 257,
            start: "default/name\0".into(),
        };
        let read = Token::decode(&token.encode()).unwrap();
        assert_eq!(
            (read.revision, read.start.as_str()),
            (257, "default/name\0")
        );
        for bad in ["x", "e30", "!!!"] {
            let error = Token::decode(bad).err().unwrap();
            assert!(error.message.starts_with("invalid continue token: "));
        }
    }
}
