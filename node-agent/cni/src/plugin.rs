//! One call of the plugin, from the environment and standard input to standard output.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::version_text;
use crate::result::result;
use crate::{
    Attachment, CniError, Code, Command, Done, Environment, NetConf, Request, Version, Wanted, ask,
};

/// What to print, and how to exit.
#[must_use]
pub fn run(variable: &dyn Fn(&str) -> Option<String>, input: &[u8]) -> (String, ExitCode) {
    match answer(variable, input) {
        Ok(Some(value)) => (format!("{value:#}\n"), ExitCode::SUCCESS),
        Ok(None) => (String::new(), ExitCode::SUCCESS),
        Err(error) => error.printed(version_text(input).as_deref()),
    }
}

fn answer(
    variable: &dyn Fn(&str) -> Option<String>,
    input: &[u8],
) -> Result<Option<Value>, CniError> {
    let environment = Environment::read(variable)?;
    if environment.command == Command::Version {
        let asked = version_text(input).filter(|text| text != Version::UNNAMED);
        return Ok(Some(json!({
            "cniVersion": asked.as_deref().unwrap_or(Version::V1_1_0.text()),
            "supportedVersions": Version::ALL.map(Version::text),
        })));
    }
    let conf = NetConf::parse(input)?;
    need_version(&environment, &conf)?;
    let request = request(&environment, &conf)?;
    let netns = match (&request, &environment.netns) {
        (Request::Add(..) | Request::Check(..), Some(path)) => Some(open_namespace(path)?),
        _ => None,
    };
    let done = ask(
        &conf.socket,
        &request,
        netns.as_ref().map(|netns| netns.as_fd()),
    )
    .map_err(|error| {
        let code = match request {
            Request::Status => Code::NotAvailable,
            _ => Code::TryAgainLater,
        };
        let message = format!(
            "the node agent does not answer at {}: it is starting, or not running",
            conf.socket.display()
        );
        CniError::new(code, message).with_details(error.to_string())
    })??;
    Ok(match done {
        Done::Wired(wired) => {
            let sandbox = environment.netns.unwrap_or_default();
            Some(result(
                conf.version,
                &wired,
                &environment.ifname,
                &sandbox.to_string_lossy(),
                conf.dns.as_ref(),
            ))
        }
        Done::Nothing => None,
    })
}

/// Commands exist from a version on.
fn need_version(environment: &Environment, conf: &NetConf) -> Result<(), CniError> {
    let (name, since) = match environment.command {
        Command::Check => ("CHECK", Version::V0_4_0),
        Command::Gc => ("GC", Version::V1_1_0),
        Command::Status => ("STATUS", Version::V1_1_0),
        _ => return Ok(()),
    };
    if conf.version >= since {
        return Ok(());
    }
    Err(CniError::new(
        Code::IncompatibleVersion,
        format!(
            "cniVersion {} has no {name}: choose {since} or later",
            conf.version
        ),
    ))
}

fn request(environment: &Environment, conf: &NetConf) -> Result<Request, CniError> {
    let attachment = || Attachment {
        network: conf.name.clone(),
        container_id: environment.container_id.clone(),
        ifname: environment.ifname.clone(),
    };
    let missing = |field: &str, command: &str| {
        CniError::new(
            Code::InvalidConfiguration,
            format!("{field} is missing: the runtime gives it with {command}"),
        )
    };
    let argument = |key: &str| environment.args.get(key).cloned().unwrap_or_default();
    Ok(match environment.command {
        Command::Add => Request::Add(
            attachment(),
            Wanted {
                pod_namespace: argument("K8S_POD_NAMESPACE"),
                pod_name: argument("K8S_POD_NAME"),
                mtu: conf.mtu,
                port_mappings: conf.port_mappings.clone(),
                bandwidth: conf.bandwidth,
                sysctls: conf
                    .sysctls
                    .iter()
                    .map(|(key, value)| (key.replace("IFNAME", &environment.ifname), value.clone()))
                    .collect(),
            },
        ),
        Command::Del => Request::Del(attachment()),
        Command::Check => {
            let earlier = conf
                .prev_result
                .as_ref()
                .ok_or_else(|| missing("prevResult", "CHECK"))?;
            let ips: Vec<IpAddr> = earlier.ips.iter().map(|ip| ip.address.ip()).collect();
            Request::Check(attachment(), ips)
        }
        Command::Gc => {
            let valid = conf
                .valid_attachments
                .as_ref()
                .ok_or_else(|| missing("cni.dev/valid-attachments", "GC"))?;
            let valid = valid.iter().map(|valid| Attachment {
                network: conf.name.clone(),
                container_id: valid.container_id.clone(),
                ifname: valid.ifname.clone(),
            });
            Request::Gc {
                network: conf.name.clone(),
                valid: valid.collect(),
            }
        }
        Command::Status | Command::Version => Request::Status,
    })
}

fn open_namespace(path: &Path) -> Result<File, CniError> {
    File::open(path).map_err(|error| {
        CniError::new(
            Code::UnknownContainer,
            format!(
                "CNI_NETNS {}: the namespace cannot be opened",
                path.display()
            ),
        )
        .with_details(error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: &str, conf: &Value) -> Value {
        let (text, _) = run(
            &|name| {
                let value = match name {
                    "CNI_COMMAND" => command,
                    "CNI_CONTAINERID" => "c1",
                    "CNI_IFNAME" => "eth0",
                    "CNI_NETNS" => "/proc/self/ns/net",
                    _ => return None,
                };
                Some(value.to_owned())
            },
            conf.to_string().as_bytes(),
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_versions_are_told_without_an_agent() {
        let answer = call("VERSION", &json!({"cniVersion": "0.4.0"}));
        assert_eq!(
            answer,
            json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
        );
    }

    #[test]
    fn an_agent_that_is_away_is_a_reason_to_ask_again() {
        let conf = json!({"cniVersion": "1.1.0", "name": "n", "socket": "/nowhere/cni.sock",
            "prevResult": {}, "cni.dev/valid-attachments": []});
        for (command, code) in [
            ("ADD", 11),
            ("DEL", 11),
            ("CHECK", 11),
            ("GC", 11),
            ("STATUS", 50),
        ] {
            let answer = call(command, &conf);
            assert_eq!(answer["code"], code, "{command}: {answer}");
            assert_eq!(answer["cniVersion"], "1.1.0");
        }
    }

    #[test]
    fn commands_are_refused_in_versions_that_had_none() {
        for (command, version) in [("CHECK", "0.3.1"), ("GC", "1.0.0"), ("STATUS", "1.0.0")] {
            let answer = call(command, &json!({"cniVersion": version, "name": "n"}));
            assert_eq!(answer["code"], 1, "{command}");
        }
    }

    #[test]
    fn a_collection_without_a_list_would_remove_everything_and_is_refused() {
        let answer = call("GC", &json!({"cniVersion": "1.1.0", "name": "n"}));
        assert_eq!(answer["code"], 7);
    }
}
