//! One HTTP/1.1 GET, as probes and hooks send it: from the node to the pod, no redirect followed, no body kept.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, HTTPGetAction, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// More than any status line needs, in bytes.
const STATUS_LINE_MAX: usize = 1024;

/// Sends the request; answers the status code.
///
/// # Errors
///
/// What went wrong, in the words that an event shows.
pub(crate) async fn get(
    action: &HTTPGetAction,
    container: &Container,
    pod_ip: Option<IpAddr>,
    limit: Duration,
) -> Result<u16, String> {
    if action
        .scheme
        .as_deref()
        .is_some_and(|scheme| scheme != "HTTP")
    {
        return Err("scheme HTTPS is not supported yet: use HTTP, tcpSocket or exec".to_owned());
    }
    let port = port(&action.port, container)?;
    let host = target(action.host.as_deref(), pod_ip)?;
    let path = action
        .path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/");
    let mut headers = String::new();
    let given = |name: &str| {
        action
            .http_headers
            .iter()
            .flatten()
            .any(|header| header.name.eq_ignore_ascii_case(name))
    };
    if !given("Host") {
        let literal = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        headers.push_str(&format!("Host: {literal}:{port}\r\n"));
    }
    if !given("User-Agent") {
        headers.push_str("User-Agent: kube-probe/1.37\r\n");
    }
    for header in action.http_headers.iter().flatten() {
        headers.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    let request =
        format!("GET {slash}{path} HTTP/1.1\r\n{headers}Accept: */*\r\nConnection: close\r\n\r\n");
    let url = format!("Get \"http://{host}:{port}{slash}{path}\"");
    let exchange = async {
        let mut stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(256);
        while !answer.contains(&b'\n') && answer.len() < STATUS_LINE_MAX {
            if stream.read_buf(&mut answer).await? == 0 {
                break;
            }
        }
        Ok::<_, std::io::Error>(answer)
    };
    match timeout(limit, exchange).await {
        Err(_) => Err(format!("{url}: no answer within {} s", limit.as_secs())),
        Ok(Err(error)) => Err(format!("{url}: {error}")),
        Ok(Ok(answer)) => {
            status_code(&answer).ok_or_else(|| format!("{url}: the answer is not HTTP/1"))
        }
    }
}

/// Opens a TCP connection and closes it.
///
/// # Errors
///
/// As [`get`].
pub(crate) async fn connect(
    action: &TCPSocketAction,
    container: &Container,
    pod_ip: Option<IpAddr>,
    limit: Duration,
) -> Result<(), String> {
    let port = port(&action.port, container)?;
    let host = target(action.host.as_deref(), pod_ip)?;
    match timeout(limit, TcpStream::connect((host.as_str(), port))).await {
        Err(_) => Err(format!(
            "dial tcp {host}:{port}: no answer within {} s",
            limit.as_secs()
        )),
        Ok(Err(error)) => Err(format!("dial tcp {host}:{port}: {error}")),
        Ok(Ok(_)) => Ok(()),
    }
}

fn target(given: Option<&str>, pod_ip: Option<IpAddr>) -> Result<String, String> {
    match given.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.to_owned()),
        None => pod_ip
            .map(|ip| ip.to_string())
            .ok_or_else(|| "the pod has no address yet".to_owned()),
    }
}

/// The number of a port that is given by number or by its name in the container.
fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok()),
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
        .ok_or_else(|| {
            format!(
                "container {} has no port {}",
                container.name,
                describe(port)
            )
        })
}

fn describe(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => format!("named {name:?}"),
    }
}

/// The code of a status line `HTTP/1.x CODE …` (RFC 9112, section 4).
fn status_code(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next()?.strip_prefix("HTTP/1.")?;
    words
        .next()?
        .parse()
        .ok()
        .filter(|code| (100..600).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_line_is_read_and_anything_else_is_not() {
        assert_eq!(status_code(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status_code(b"HTTP/1.0 503\n"), Some(503));
        for other in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"",
            b"HTTP/1.1",
            b"HTTP/1.1 abc\n",
            b"HTTP/1.1 20\n",
            b"\xff\xfe",
        ] {
            assert_eq!(status_code(other), None);
        }
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "a", "ports": [{"name": "http", "containerPort": 8080}]
        }))
        .unwrap();
        assert_eq!(
            port(&IntOrString::String("http".to_owned()), &container),
            Ok(8080)
        );
        assert_eq!(port(&IntOrString::Int(81), &container), Ok(81));
        let error = port(&IntOrString::String("https".to_owned()), &container).unwrap_err();
        assert_eq!(error, "container a has no port named \"https\"");
        assert!(port(&IntOrString::Int(70000), &container).is_err());
    }
}
