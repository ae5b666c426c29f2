//! A real kube-proxy in its nftables mode, where one is given, and what its rules make of each frontend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tests_testkit::Machine;

use crate::Api;

/// Names the program.
const VARIABLE: &str = "KUBE_PROXY";

/// The kube-proxy that the environment names, if it names one.
#[must_use]
pub fn kube_proxy() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Protocol and address of a frontend; that of a NodePort has no IP of its own.
pub type Place = (String, Option<IpAddr>, u16);

/// What becomes of a new connection from outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It goes to one of them.
    Backends(BTreeSet<SocketAddr>),
    /// It is refused at once.
    Refused,
    /// It is not answered: another node may.
    Dropped,
}

/// All frontends of a node.
pub type Verdicts = BTreeMap<Place, Verdict>;

/// Ends when this is dropped; its rules go with the machine.
#[derive(Debug)]
pub struct KubeProxy {
    child: Child,
    machine: Machine,
    folder: TempDir,
}

impl KubeProxy {
    /// Starts one on `machine` that takes itself for the node `name`.
    ///
    /// # Errors
    ///
    /// When none is given, or it cannot be started.
    pub fn start(name: &str, machine: Machine, api: &Api) -> Result<Self> {
        let folder = tempfile::tempdir().context("make a temporary folder")?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new(kube_proxy().context("KUBE_PROXY names none")?);
        command
            .arg(api.flag_at(api.machine().ipv4.into(), "--master", "--kubeconfig"))
            .arg(format!("--hostname-override={name}"))
            .arg("--proxy-mode=nftables")
            // Limits of the whole machine, which are not a namespace's to set.
            .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = machine.run(|| command.spawn());
        Ok(Self {
            child: child.context("start kube-proxy")?,
            machine,
            folder,
        })
    }

    /// What its rules say now, in both families.
    ///
    /// # Errors
    ///
    /// When it ended, or has not written its tables yet.
    pub fn verdicts(&mut self) -> Result<Verdicts> {
        if let Some(status) = self.child.try_wait()? {
            bail!("kube-proxy ended with {status}:\n{}", self.log());
        }
        let mut verdicts = Verdicts::new();
        for family in ["ip", "ip6"] {
            let output = self.machine.run(|| {
                Command::new("nft")
                    .args(["list", "table", family, "kube-proxy"])
                    .output()
            })?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{complaint}\n{}", self.log());
            let table = Table::parse(&String::from_utf8(output.stdout)?)?;
            table.read(&mut verdicts)?;
        }
        Ok(verdicts)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A table as `nft list table` prints it: maps and chains by their names, each with its lines.
#[derive(Debug, Default)]
struct Table(BTreeMap<String, String>);

impl Table {
    fn parse(text: &str) -> Result<Self> {
        let mut table = Self::default();
        let mut within = String::new();
        for line in text.lines().skip(1) {
            let line = line.trim();
            let mut words = line.split_whitespace();
            if let (Some("map" | "chain" | "set"), Some(name), Some("{")) =
                (words.next(), words.next(), words.next())
            {
                within = name.to_owned();
            } else if !["", "}"].contains(&line) {
                let body = table.0.entry(within.clone()).or_default();
                body.push_str(line);
                body.push('\n');
            }
        }
        ensure!(!table.0.is_empty(), "there is no table in {text:?}");
        Ok(table)
    }

    fn body(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// The elements of a map, or of an anonymous one: keys and values.
    fn elements(body: &str) -> impl Iterator<Item = (&str, &str)> {
        let inner = body.rsplit_once('{').map_or("", |(_, inner)| inner);
        let inner = inner.split_once('}').map_or("", |(inner, _)| inner);
        inner.split(',').filter_map(|element| {
            let (key, value) = element.split_once(" : ")?;
            // A comment stands behind the key.
            let key = key.split(" comment ").next().unwrap_or(key);
            Some((key.trim(), value.trim()))
        })
    }

    fn read(&self, verdicts: &mut Verdicts) -> Result<()> {
        for (map, none) in [
            ("service-ips", "no-endpoint-services"),
            ("service-nodeports", "no-endpoint-nodeports"),
        ] {
            for (key, value) in Self::elements(self.body(none)) {
                let verdict = match value {
                    "drop" => Verdict::Dropped,
                    _ => Verdict::Refused,
                };
                verdicts.insert(place(key)?, verdict);
            }
            for (key, value) in Self::elements(self.body(map)) {
                let chain = value.strip_prefix("goto ").context("a verdict")?;
                let backends = self.backends(chain)?;
                // What only clients in the cluster reach is among those that are dropped.
                if !backends.is_empty() {
                    verdicts.insert(place(key)?, Verdict::Backends(backends));
                }
            }
        }
        Ok(())
    }

    /// Where a chain of a service leads what comes from outside.
    fn backends(&self, chain: &str) -> Result<BTreeSet<SocketAddr>> {
        let body = self.body(chain);
        let last = body.lines().next_back().unwrap_or_default();
        if let Some(further) = last.strip_prefix("goto ") {
            return self.backends(further);
        }
        let mut backends = BTreeSet::new();
        if !last.contains("numgen random mod") {
            return Ok(backends);
        }
        for (_, value) in Self::elements(last) {
            backends.insert(match value.strip_prefix("goto ") {
                Some(endpoint) => {
                    let body = self.body(endpoint);
                    let (_, address) = body.rsplit_once(" to ").context("no dnat in a chain")?;
                    let address = address.split_whitespace().next();
                    address.unwrap_or_default().parse()?
                }
                None => {
                    let (ip, port) = value.split_once(" . ").context("an address")?;
                    SocketAddr::new(ip.parse()?, port.parse()?)
                }
            });
        }
        Ok(backends)
    }
}

/// Of `ADDRESS . PROTOCOL . PORT` or `PROTOCOL . PORT`.
fn place(key: &str) -> Result<Place> {
    let words: Vec<&str> = key.split(" . ").collect();
    let (ip, [protocol, port]) = match words[..] {
        [ip, protocol, port] => (Some(ip.parse()?), [protocol, port]),
        [protocol, port] => (None, [protocol, port]),
        _ => bail!("{key:?} is no frontend"),
    };
    let port = port.parse().with_context(|| key.to_owned())?;
    Ok((protocol.to_owned(), ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"table ip kube-proxy {
	comment "rules for kube-proxy"

	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		comment "ClusterIP traffic"
		elements = { 10.96.0.7 . tcp . 80 : goto service-A-ns/a/tcp/,
			     192.0.2.9 . udp . 53 : goto external-B-ns/b/udp/dns,
			     192.0.2.8 . udp . 53 : goto external-C-ns/c/udp/dns }
	}

	map no-endpoint-services {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 10.96.0.9 . tcp . 80 comment "ns/d" : goto reject-chain,
			     192.0.2.8 . udp . 53 comment "ns/c:dns" : drop }
	}

	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto service-A-ns/a/tcp/ }
	}

	chain service-A-ns/a/tcp/ {
		ip daddr 10.96.0.7 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
		meta l4proto tcp dnat ip addr . port to numgen random mod 2 map { 0 : 10.0.0.1 . 8080, 1 : 10.0.0.2 . 8081 }
	}

	chain external-B-ns/b/udp/dns {
		jump mark-for-masquerade
		goto service-B-ns/b/udp/dns
	}

	chain service-B-ns/b/udp/dns {
		ip saddr @affinity-B goto endpoint-B-ns/b/udp/dns__10.0.0.3/53
		numgen random mod 1 vmap { 0 : goto endpoint-B-ns/b/udp/dns__10.0.0.3/53 }
	}

	chain endpoint-B-ns/b/udp/dns__10.0.0.3/53 {
		update @affinity-B { ip saddr }
		meta l4proto udp dnat to 10.0.0.3:53
	}

	chain external-C-ns/c/udp/dns {
		fib saddr type local goto service-C-ns/c/udp/dns
	}
}
"#;

    #[test]
    fn each_frontend_of_a_table_is_read() {
        let mut verdicts = Verdicts::new();
        let table = Table::parse(TABLE).unwrap();
        table.read(&mut verdicts).unwrap();
        let to = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().unwrap());
            Verdict::Backends(addresses.collect())
        };
        let at = |protocol: &str, ip: &str, port| {
            let place = (protocol.to_owned(), ip.parse().ok(), port);
            verdicts.get(&place).cloned()
        };
        let both = Some(to(&["10.0.0.1:8080", "10.0.0.2:8081"]));
        assert_eq!(at("tcp", "10.96.0.7", 80), both);
        assert_eq!(at("tcp", "", 30080), both);
        assert_eq!(at("udp", "192.0.2.9", 53), Some(to(&["10.0.0.3:53"])));
        assert_eq!(at("udp", "192.0.2.8", 53), Some(Verdict::Dropped));
        assert_eq!(at("tcp", "10.96.0.9", 80), Some(Verdict::Refused));
        assert_eq!(verdicts.len(), 5);
    }
}
