//! Ports of the node that lead to ports of pods (`hostPort`): which pod has which, so that none is given twice. One file
//! a pod, so that an agent that starts again knows them before anybody asks.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Where a file is written before it gets its name.
const PENDING: &str = ".pending";

/// `hostPort`, `containerPort`, `protocol` and `hostIP` of a container's port.
/// <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#ports>
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HostPort {
    pub protocol: PortProtocol,
    pub port: u16,
    pub container_port: u16,
    /// `None`: every address of the node.
    pub ip: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PortProtocol {
    Tcp,
    Udp,
    Sctp,
}

/// The ports of one pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PortClaim {
    pub namespace: String,
    pub name: String,
    pub ports: Vec<HostPort>,
}

/// The host ports of one node. One process at a time may have a directory open.
#[derive(Debug)]
pub struct HostPorts {
    directory: PathBuf,
    claims: Mutex<BTreeMap<String, PortClaim>>,
}

/// Why a pod does not get its host ports.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    #[error(
        "hostPort {wanted} is taken: pod {namespace}/{name} has {taken}; choose another, or remove that pod"
    )]
    Taken {
        wanted: HostPort,
        taken: HostPort,
        namespace: String,
        name: String,
    },
    #[error("{operation} {path}")]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} does not hold host ports of a pod: move it away")]
    NotAClaim { path: PathBuf },
}

impl HostPorts {
    /// Opens the claims in `directory`, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or is none of these.
    pub fn open(directory: &Path) -> Result<Self, HostPortError> {
        fs::create_dir_all(directory).map_err(at("create", directory))?;
        let mut claims = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(at("list", directory))? {
            let path = entry.map_err(at("list", directory))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name == Some(PENDING) {
                // The pod whose ports these were to be has got none.
                fs::remove_file(&path).map_err(at("remove", &path))?;
                continue;
            }
            let text = fs::read_to_string(&path).map_err(at("read", &path))?;
            match (name, PortClaim::parse(&text)) {
                (Some(owner), Some(claim)) => claims.insert(owner.to_owned(), claim),
                _ => return Err(HostPortError::NotAClaim { path }),
            };
        }
        Ok(Self {
            directory: directory.to_owned(),
            claims: Mutex::new(claims),
        })
    }

    /// Gives a pod its ports, durable when this returns; none of them if one is taken. What the owner had before goes.
    ///
    /// # Errors
    ///
    /// [`HostPortError::Taken`] names the pod that has the port.
    pub fn claim(&self, owner: &str, claim: PortClaim) -> Result<(), HostPortError> {
        let mut claims = self.claims();
        if claims.get(owner) == Some(&claim) {
            return Ok(());
        }
        let others = claims.iter().filter(|(other, _)| *other != owner);
        for taken in others.map(|(_, taken)| taken) {
            for wanted in &claim.ports {
                if let Some(port) = taken.ports.iter().find(|port| port.clashes(wanted)) {
                    return Err(HostPortError::Taken {
                        wanted: *wanted,
                        taken: *port,
                        namespace: taken.namespace.clone(),
                        name: taken.name.clone(),
                    });
                }
            }
        }
        if claim.ports.is_empty() {
            return self.remove(&mut claims, owner).map(drop);
        }
        let (pending, path) = (self.directory.join(PENDING), self.directory.join(owner));
        let write = || {
            fs::write(&pending, claim.text())?;
            fs::File::open(&pending)?.sync_all()?;
            fs::rename(&pending, &path)?;
            fs::File::open(&self.directory)?.sync_all()
        };
        write().map_err(at("write", &path))?;
        claims.insert(owner.to_owned(), claim);
        Ok(())
    }

    /// Takes a pod's ports back; what it had. A pod that has none is no error.
    ///
    /// # Errors
    ///
    /// When the file cannot be removed.
    pub fn release(&self, owner: &str) -> Result<Option<PortClaim>, HostPortError> {
        self.remove(&mut self.claims(), owner)
    }

    /// What a pod has.
    #[must_use]
    pub fn of(&self, owner: &str) -> Option<PortClaim> {
        self.claims().get(owner).cloned()
    }

    /// Everybody's, by owner.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, PortClaim> {
        self.claims().clone()
    }

    fn remove(
        &self,
        claims: &mut BTreeMap<String, PortClaim>,
        owner: &str,
    ) -> Result<Option<PortClaim>, HostPortError> {
        if !claims.contains_key(owner) {
            return Ok(None);
        }
        let path = self.directory.join(owner);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("remove", &path)(error));
            }
            _ => {}
        }
        Ok(claims.remove(owner))
    }

    fn claims(&self) -> MutexGuard<'_, BTreeMap<String, PortClaim>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostPort {
    /// Whether one packet could be meant for both.
    fn clashes(&self, other: &Self) -> bool {
        let same_ip = match (self.ip, other.ip) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        same_ip && (self.protocol, self.port) == (other.protocol, other.port)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.word())?;
        match self.ip {
            Some(ip) => write!(f, " on {ip}"),
            None => Ok(()),
        }
    }
}

impl PortProtocol {
    /// As Kubernetes writes it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl FromStr for PortProtocol {
    type Err = ();

    /// In any case: container runtimes write `tcp`.
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.word().eq_ignore_ascii_case(text))
            .ok_or(())
    }
}

impl PortClaim {
    /// The pod in the first line, then a port a line.
    fn text(&self) -> String {
        let mut text = format!("{} {}\n", self.namespace, self.name);
        for port in &self.ports {
            let ip = port.ip.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
            let (protocol, from, to) = (port.protocol.word(), port.port, port.container_port);
            text += &format!("{protocol} {ip} {from} {to}\n");
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (namespace, name) = lines.next()?.split_once(' ')?;
        let port = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let [protocol, ip, from, to] = words[..] else {
                return None;
            };
            Some(HostPort {
                protocol: protocol.parse().ok()?,
                ip: match ip {
                    "*" => None,
                    ip => Some(ip.parse().ok()?),
                },
                port: from.parse().ok()?,
                container_port: to.parse().ok()?,
            })
        };
        let ports: Vec<HostPort> = lines.map(port).collect::<Option<_>>()?;
        // A pod without ports has no file.
        (!ports.is_empty()).then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ports,
        })
    }
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostPortError {
    let path = path.to_owned();
    move |source| HostPortError::File {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(protocol: PortProtocol, port: u16, ip: Option<&str>) -> HostPort {
        HostPort {
            protocol,
            port,
            container_port: 80,
            ip: ip.map(|ip| ip.parse().unwrap()),
        }
    }

    fn claim(name: &str, ports: &[HostPort]) -> PortClaim {
        PortClaim {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            ports: ports.to_vec(),
        }
    }

    #[test]
    fn a_port_is_given_once_and_again_when_it_is_free() {
        let directory = tempfile::tempdir().unwrap();
        let ports = HostPorts::open(directory.path()).unwrap();
        let any = port(PortProtocol::Tcp, 8080, None);
        let one = port(PortProtocol::Tcp, 8080, Some("192.0.2.1"));
        let other = port(PortProtocol::Tcp, 8080, Some("192.0.2.2"));
        let udp = port(PortProtocol::Udp, 8080, None);
        ports.claim("a", claim("web", &[one])).unwrap();
        for wanted in [one, any] {
            let error = ports
                .claim("b", claim("late", &[udp, wanted]))
                .unwrap_err()
                .to_string();
            assert!(error.contains("8080/TCP on 192.0.2.1"), "{error}");
            assert!(error.contains("default/web"), "{error}");
        }
        assert_eq!(ports.of("b"), None, "not even the port that was free");
        ports.claim("b", claim("late", &[udp, other])).unwrap();
        // A runtime that asks again gets the same, and other ones if it asks for others.
        ports.claim("a", claim("web", &[one])).unwrap();
        ports
            .claim("a", claim("web", &[port(PortProtocol::Tcp, 81, None)]))
            .unwrap();
        ports.claim("c", claim("new", &[one])).unwrap();
        assert_eq!(ports.release("c").unwrap(), Some(claim("new", &[one])));
        assert_eq!(ports.release("c").unwrap(), None);
    }

    #[test]
    fn what_was_given_is_known_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let given = claim(
            "web",
            &[
                port(PortProtocol::Tcp, 1, None),
                port(PortProtocol::Sctp, 65535, Some("2001:db8::1")),
            ],
        );
        HostPorts::open(directory.path())
            .unwrap()
            .claim("a:b:eth0", given.clone())
            .unwrap();
        fs::write(directory.path().join(PENDING), "half").unwrap();
        let again = HostPorts::open(directory.path()).unwrap();
        assert_eq!(
            again.all(),
            BTreeMap::from([("a:b:eth0".to_owned(), given)])
        );
        again.claim("a:b:eth0", claim("web", &[])).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        fs::write(directory.path().join("odd"), "what is this").unwrap();
        let error = HostPorts::open(directory.path()).unwrap_err();
        assert!(error.to_string().contains("odd"), "{error}");
    }
}
