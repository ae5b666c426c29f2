//! The kubelet's path for what is asked of a pod: `pods/log`, `exec`, `attach` and `portforward`, whose options are those
//! of `PodLogOptions` and its siblings in core/v1.

use control_plane_registry::errors::Result;
use control_plane_registry::json::Json;
use control_plane_registry::{ApiError, FieldError, kinds};
use serde_json::Value;

use crate::Api;
use crate::query::{Query, encode};

/// A pod as its subresources need it.
#[derive(Debug)]
pub struct Pod {
    namespace: String,
    name: String,
    value: Value,
}

impl Pod {
    /// # Errors
    /// 404 when there is none.
    pub async fn find(api: &Api, namespace: &str, name: &str) -> Result<Self> {
        let kind = kinds::find("", "v1", "pods").expect("Pod is a kind of the table");
        let object = api.registry.get(kind, namespace, name, None).await?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            value: object.value(),
        })
    }

    /// Empty: no node has it.
    pub fn node(&self) -> &str {
        self.value.text("/spec/nodeName")
    }

    /// Its address; empty while it has none.
    pub fn ip(&self) -> &str {
        self.value.text("/status/podIP")
    }

    /// The first port that one of its containers declares.
    pub fn first_port(&self) -> Option<u16> {
        let containers = self.value.items("/spec/containers").iter();
        let mut ports = containers.flat_map(|container| container.items("/ports"));
        ports.find_map(|port| u16::try_from(port.integer("/containerPort")?).ok())
    }

    /// # Errors
    /// 400 for a container that is not there or not named, 422 for options that make no sense.
    pub fn log(&self, query: &Query) -> Result<String> {
        self.check_log_options(query)?;
        let container = self.container(query)?;
        let mut path = self.path("containerLogs", Some(container));
        for name in [
            "follow",
            "limitBytes",
            "previous",
            "sinceSeconds",
            "sinceTime",
            "tailLines",
            "timestamps",
        ] {
            if query.has(name) {
                path.add(name, query.get(name));
            }
        }
        Ok(path.0)
    }

    /// # Errors
    /// 400 for a container that is not there or not named, or without a command.
    pub fn exec(&self, query: &Query) -> Result<String> {
        let mut path = self.streams("exec", query)?;
        let mut command = query.all("command").peekable();
        if command.peek().is_none() {
            return Err(ApiError::bad_request("you must specify a command"));
        }
        command.for_each(|word| path.add("command", word));
        Ok(path.0)
    }

    /// # Errors
    /// 400 for a container that is not there or not named.
    pub fn attach(&self, query: &Query) -> Result<String> {
        Ok(self.streams("attach", query)?.0)
    }

    pub fn port_forward(&self, query: &Query) -> String {
        let ports: Vec<&str> = query.all("ports").filter(|port| !port.is_empty()).collect();
        self.port_forward_to(&ports)
    }

    pub fn port_forward_to(&self, ports: &[&str]) -> String {
        let mut path = self.path("portForward", None);
        if !ports.is_empty() {
            path.add("port", &ports.join(","));
        }
        path.0
    }

    /// Output is wanted unless it is refused; the rest only if asked for.
    fn streams(&self, verb: &str, query: &Query) -> Result<Path> {
        let container = self.container(query)?;
        let mut path = self.path(verb, Some(container));
        let by_default = |name| !query.has(name) || query.flag(name);
        for (name, wanted) in [
            ("input", query.flag("stdin")),
            ("output", by_default("stdout")),
            // A terminal has one output.
            ("error", by_default("stderr") && !query.flag("tty")),
            ("tty", query.flag("tty")),
        ] {
            if wanted {
                path.add(name, "1");
            }
        }
        Ok(path)
    }

    fn path(&self, verb: &str, container: Option<&str>) -> Path {
        let container = container.map_or_else(String::new, |name| format!("/{}", encode(name)));
        let (namespace, name) = (encode(&self.namespace), encode(&self.name));
        Path(format!("/{verb}/{namespace}/{name}{container}"))
    }

    /// The container that the query names, or the pod's only one.
    fn container<'a>(&'a self, query: &'a Query) -> Result<&'a str> {
        if self.node().is_empty() {
            let message = format!("pod {} does not have a host assigned", self.name);
            return Err(ApiError::bad_request(message));
        }
        let names = |list: &str| -> Vec<&str> {
            let containers = self.value.items(list).iter();
            containers
                .map(|container| container.text("/name"))
                .collect()
        };
        let (own, init) = (names("/spec/containers"), names("/spec/initContainers"));
        let asked = query.get("container");
        match own.as_slice() {
            [only] if asked.is_empty() => Ok(only),
            _ if asked.is_empty() => {
                let mut message = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    self.name,
                    own.join(" ")
                );
                if !init.is_empty() {
                    message.push_str(&format!(
                        " or one of the init containers: [{}]",
                        init.join(" ")
                    ));
                }
                Err(ApiError::bad_request(message))
            }
            _ if own.contains(&asked) || init.contains(&asked) => Ok(asked),
            _ => Err(ApiError::bad_request(format!(
                "container {asked} is not valid for pod {}",
                self.name
            ))),
        }
    }

    fn check_log_options(&self, query: &Query) -> Result<()> {
        let mut errors = Vec::new();
        for (name, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
            let text = query.get(name);
            if text.is_empty() {
                continue;
            }
            match text.parse::<i64>() {
                Ok(number) if number >= least => {}
                Ok(number) => {
                    let detail = format!("must be greater than or equal to {least}");
                    errors.push(FieldError::invalid(name, number, detail));
                }
                Err(_) => {
                    let message =
                        format!("invalid value {text:?} of parameter {name}: give a number");
                    return Err(ApiError::bad_request(message));
                }
            }
        }
        if !query.get("sinceSeconds").is_empty() && !query.get("sinceTime").is_empty() {
            let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden("", detail));
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid_of(
            "",
            "PodLogOptions",
            &self.name,
            &errors,
        ))
    }
}

/// A path with its query.
struct Path(String);

impl Path {
    fn add(&mut self, name: &str, value: &str) {
        let mark = if self.0.contains('?') { '&' } else { '?' };
        self.0.push_str(&format!("{mark}{name}={}", encode(value)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: &[&str]) -> Pod {
        let containers = containers.iter().map(|name| json!({"name": name}));
        Pod {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            value: json!({"spec": {
                "nodeName": "n1",
                "containers": containers.collect::<Vec<_>>(),
                "initContainers": [{"name": "init"}],
            }}),
        }
    }

    fn query(text: &str) -> Query {
        Query::parse(Some(text))
    }

    #[test]
    fn a_command_comes_word_by_word_with_its_streams() {
        let asked =
            query("command=sh&command=-c&command=a+%26%26+b&stdin=true&stdout=true&stderr=true");
        let path = pod(&["c"]).exec(&asked).unwrap();
        let expected = "/exec/default/web/c?input=1&output=1&error=1&command=sh&command=-c&command=a%20%26%26%20b";
        assert_eq!(path, expected);
        let terminal = pod(&["c"]).attach(&query("tty=true&stdin=true")).unwrap();
        assert_eq!(terminal, "/attach/default/web/c?input=1&output=1&tty=1");
    }

    #[test]
    fn a_container_must_be_named_unless_there_is_one() {
        let two = pod(&["a", "b"]);
        let error = two.log(&query("")).unwrap_err();
        assert_eq!(
            error.message,
            "a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [init]"
        );
        let error = two.log(&query("container=x")).unwrap_err();
        assert_eq!(error.message, "container x is not valid for pod web");
        let path = two
            .log(&query("container=init&tailLines=0&pretty=true"))
            .unwrap();
        assert_eq!(path, "/containerLogs/default/web/init?tailLines=0");
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let error = pod(&["c"]).log(&query("tailLines=-1")).unwrap_err();
        assert_eq!(
            error.message,
            "PodLogOptions \"web\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0"
        );
        let both = query("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z");
        assert_eq!(pod(&["c"]).log(&both).unwrap_err().code, 422);
        assert_eq!(
            pod(&["c"]).log(&query("tailLines=x")).unwrap_err().code,
            400
        );
    }
}
