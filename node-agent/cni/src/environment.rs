//! What the runtime says by environment variables.
//! <https://www.cni.dev/docs/spec/#parameters>

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::{CniError, Code};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// Valid by itself; what a command does not need is empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Environment {
    pub command: Command,
    pub container_id: String,
    pub netns: Option<PathBuf>,
    pub ifname: String,
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and whatever else the runtime passes.
    pub args: BTreeMap<String, String>,
}

/// Longest name of an interface, in bytes (`IFNAMSIZ` less its final zero).
const IFNAME_MAX: usize = 15;

impl Environment {
    /// # Errors
    ///
    /// [`Code::InvalidEnvironment`] names the variable.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let get = |name: &str| variable(name).unwrap_or_default();
        let command = match get("CNI_COMMAND").as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            "" => {
                return Err(invalid(
                    "CNI_COMMAND is missing: a container runtime sets it to ADD, DEL, CHECK, GC, STATUS or VERSION",
                ));
            }
            other => return Err(invalid(format!("unknown CNI_COMMAND: {other}"))),
        };
        let of_a_container = matches!(command, Command::Add | Command::Del | Command::Check);
        let mut needed = Vec::new();
        if of_a_container {
            needed.extend(["CNI_CONTAINERID", "CNI_IFNAME"]);
            if command != Command::Del {
                needed.push("CNI_NETNS");
            }
        }
        let missing: Vec<&str> = needed
            .into_iter()
            .filter(|name| get(name).is_empty())
            .collect();
        if !missing.is_empty() {
            return Err(invalid(format!(
                "required environment variables are missing: {}",
                missing.join(", ")
            )));
        }
        let of_it = |name| Some(get(name)).filter(|text| of_a_container && !text.is_empty());
        let environment = Self {
            command,
            container_id: of_it("CNI_CONTAINERID").unwrap_or_default(),
            netns: of_it("CNI_NETNS").map(PathBuf::from),
            ifname: of_it("CNI_IFNAME").unwrap_or_default(),
            args: arguments(&get("CNI_ARGS"))?,
        };
        if of_a_container {
            check_identifier("CNI_CONTAINERID", &environment.container_id)?;
            check_ifname(&environment.ifname)?;
        }
        Ok(environment)
    }
}

/// `K=V;K=V`.
fn arguments(text: &str) -> Result<BTreeMap<String, String>, CniError> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                invalid(format!(
                    "CNI_ARGS: {pair:?} is no pair: write KEY=VALUE, and ; between pairs"
                ))
            })?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// The specification's alphabet of container IDs and of names of networks.
pub(crate) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn check_identifier(name: &str, text: &str) -> Result<(), CniError> {
    if is_identifier(text) {
        return Ok(());
    }
    Err(invalid(format!(
        "{name} is {text:?}: it must begin with a letter or digit and consist of these, '_', '.' and '-'"
    )))
}

fn check_ifname(name: &str) -> Result<(), CniError> {
    let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.len() > IFNAME_MAX || name == "." || name == ".." || name.contains(is_bad) {
        return Err(invalid(format!(
            "CNI_IFNAME is {name:?}: an interface's name has at most {IFNAME_MAX} bytes and no '/', ':' or blank"
        )));
    }
    Ok(())
}

fn invalid(message: impl Into<String>) -> CniError {
    CniError::new(Code::InvalidEnvironment, message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
    ];

    fn read(pairs: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(&|name| {
            let found = pairs.iter().rev().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_pod_is_known_by_its_arguments() {
        let with = [
            &ADD[..],
            &[(
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web",
            )],
        ]
        .concat();
        let environment = read(&with).unwrap();
        assert_eq!(environment.command, Command::Add);
        assert_eq!(environment.args["K8S_POD_NAME"], "web");
    }

    #[test]
    fn every_missing_variable_is_named() {
        let error = read(&[("CNI_COMMAND", "ADD")]).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
            assert!(error.message.contains(name), "{error}");
        }
        assert!(read(&[]).unwrap_err().message.contains("CNI_COMMAND"));
    }

    #[test]
    fn a_deletion_needs_no_namespace_and_the_version_needs_nothing() {
        let del = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
        ];
        assert_eq!(read(&del).unwrap().netns, None);
        for command in ["VERSION", "STATUS", "GC"] {
            let none = read(&[("CNI_COMMAND", command)]).unwrap();
            // What is set nevertheless is of no container, and nothing vouches for it.
            let set = [
                ("CNI_CONTAINERID", "a/b"),
                ("CNI_IFNAME", "a:b"),
                ("CNI_NETNS", "/n"),
            ];
            let set = read(&[&[("CNI_COMMAND", command)], &set[..]].concat());
            assert_eq!(set.unwrap(), none, "{command}");
        }
    }

    #[test]
    fn names_that_the_kernel_or_the_specification_refuses_are_refused() {
        for (name, bad) in [
            ("CNI_CONTAINERID", "-c"),
            ("CNI_CONTAINERID", "a/b"),
            ("CNI_CONTAINERID", "a:b"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_IFNAME", "a b"),
            ("CNI_IFNAME", "a:b"),
            ("CNI_ARGS", "K"),
            ("CNI_COMMAND", "add"),
        ] {
            let error = read(&[&ADD[..], &[(name, bad)]].concat()).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{name}={bad}");
            assert!(error.message.contains(name), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_value_of_any_variable_makes_it_panic(values in proptest::collection::vec(".{0,40}", 4)) {
            let pairs: Vec<(&str, &str)> = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
                .into_iter()
                .zip(values.iter().map(String::as_str))
                .collect();
            if let Ok(environment) = read(&[&[("CNI_COMMAND", "ADD")], &pairs[..]].concat()) {
                prop_assert!(is_identifier(&environment.container_id));
                prop_assert!(environment.ifname.len() <= IFNAME_MAX);
            }
        }
    }
}
