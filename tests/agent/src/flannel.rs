//! A node that is flannel's: a real flanneld where `FLANNELD` names one, else what flanneld does to the kernel, by the
//! words of its documentation (`pkg/backend/vxlan`): a device of its own, and for each lease a neighbour, an FDB entry
//! and a route.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests_testkit::{Machine, NetNs, VethEnd};

use crate::{Api, Etcd, Pod, eventually};

/// The real one, if this test run was given one.
#[must_use]
pub fn flanneld() -> Option<PathBuf> {
    std::env::var_os("FLANNELD").map(PathBuf::from)
}

/// Where leases are kept.
#[derive(Clone, Copy, Debug)]
pub enum Registry<'a> {
    /// In Nodes, of an API.
    Nodes(&'a Api),
    Etcd(&'a Etcd<'a>),
}

/// What the lease of a node says.
#[derive(Clone, Copy, Debug)]
pub struct FlannelLease {
    pub subnet: Ipv4Network,
    pub public_ip: std::net::Ipv4Addr,
    pub vtep: [u8; 6],
}

/// A node of flannel's with one pod where flannel's CNI plugin would put it.
#[derive(Debug)]
pub struct FlannelNode {
    pub machine: Machine,
    pub pod: Pod,
    daemon: Option<Daemon>,
    _directory: TempDir,
}

/// Ends with its node.
#[derive(Debug)]
struct Daemon(Child);

impl FlannelLease {
    /// Of machine NUMBER: the subnet `10.64.NUMBER.0/24`.
    ///
    /// # Panics
    ///
    /// Never: the prefix is one of IPv4.
    #[must_use]
    pub fn of(machine: &Machine) -> Self {
        let base = [10, 64, machine.number, 0].into();
        Self {
            subnet: Ipv4Network::new(base, 24).expect("24 bits are a prefix of IPv4"),
            public_ip: machine.ipv4,
            vtep: [0x12, 0xc6, 0x65, 0x89, 0xb4, machine.number],
        }
    }

    /// From what etcd holds: the last part of a key, and its value.
    ///
    /// # Errors
    ///
    /// When it is no lease of VXLAN over IPv4.
    pub fn read(key: &str, value: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let mac = text(&value["BackendData"]["VtepMAC"])?;
        let mut vtep = [0; 6];
        for (byte, part) in vtep.iter_mut().zip(mac.split(':')) {
            *byte = u8::from_str_radix(part, 16)?;
        }
        Ok(Self {
            subnet: key.replace('-', "/").parse()?,
            public_ip: text(&value["PublicIP"])?.parse()?,
            vtep,
        })
    }

    fn mac(&self) -> String {
        tests_testkit::mac_text(self.vtep)
    }

    /// As flannel writes it.
    ///
    /// # Errors
    ///
    /// When the registry does not take it.
    pub fn publish(&self, name: &str, registry: Registry<'_>) -> Result<()> {
        let data = json!({"VNI": 1, "VtepMAC": self.mac()});
        match registry {
            Registry::Nodes(api) => {
                let subnet = self.subnet.to_string();
                let annotations = json!({
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/backend-type": "vxlan",
                    "flannel.alpha.coreos.com/backend-data": data.to_string(),
                    "flannel.alpha.coreos.com/public-ip": self.public_ip.to_string(),
                });
                api.add_node(name, &[&subnet], annotations)
            }
            Registry::Etcd(etcd) => {
                let key = self.subnet.to_string().replace('/', "-");
                let value = json!({"PublicIP": self.public_ip, "PublicIPv6": null, "BackendType": "vxlan", "BackendData": data});
                etcd.put(&format!("/subnets/{key}"), &value.to_string())
            }
        }
    }
}

impl FlannelNode {
    /// Does with the kernel what flanneld does: `own` is this node's lease, `others` are everybody's that it knows.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn by_hand(machine: Machine, own: FlannelLease, others: &[FlannelLease]) -> Result<Self> {
        let host = &machine.netns;
        let base = own.subnet.network();
        host.ip(&format!(
            "link add flannel.1 address {} mtu 1450 type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
             addr add {base}/32 dev flannel.1\n\
             link set flannel.1 up",
            own.mac(),
            machine.ipv4
        ))?;
        for other in others
            .iter()
            .filter(|other| other.public_ip != own.public_ip)
        {
            let (base, mac, public) = (other.subnet.network(), other.mac(), other.public_ip);
            host.ip(&format!(
                "neigh replace {base} lladdr {mac} dev flannel.1 nud permanent\n\
                 route replace {} via {base} dev flannel.1 onlink",
                other.subnet
            ))?;
            let public = public.to_string();
            let added = host.run(|| {
                Command::new("bridge")
                    .args(["fdb", "append", &mac, "dev", "flannel.1", "dst", &public])
                    .status()
            })?;
            ensure!(added.success(), "bridge fdb: {added}");
        }
        Self::with_pod(machine, own.subnet, None, tempfile::tempdir()?)
    }

    /// Starts a real flanneld and waits for its subnet.
    ///
    /// # Errors
    ///
    /// When it does not get one within a minute.
    pub fn real(machine: Machine, name: &str, registry: Registry<'_>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = |file: &str| directory.path().join(file);
        let mut command = Command::new(flanneld().context("FLANNELD names none")?);
        command
            .arg("--iface=eth0")
            .arg(format!("--subnet-file={}", path("subnet.env").display()))
            .args(["--ip-masq=false", "--iptables-forward-rules=false"])
            .env("NODE_NAME", name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path("log"))?);
        match registry {
            Registry::Nodes(api) => {
                let conf = json!({"Network": "10.64.0.0/16", "Backend": {"Type": "vxlan"}});
                std::fs::write(path("net-conf.json"), conf.to_string())?;
                let subnet = FlannelLease::of(&machine).subnet.to_string();
                api.add_node(name, &[&subnet], json!({}))?;
                command
                    .arg("--kube-subnet-mgr")
                    .arg(api.flag_of("--kube-api-url", "--kubeconfig-file"))
                    .arg(format!(
                        "--net-config-path={}",
                        path("net-conf.json").display()
                    ));
            }
            Registry::Etcd(etcd) => {
                command.arg(format!("--etcd-endpoints={}", etcd.url()));
            }
        }
        let daemon = machine.run(|| command.spawn());
        let daemon = Daemon(daemon.context("start flanneld")?);
        let subnet = eventually("flanneld has no subnet", || {
            let text = std::fs::read_to_string(path("subnet.env"))?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="));
            Ok(line.context("no FLANNEL_SUBNET")?.parse::<Ipv4Network>()?)
        });
        let subnet = subnet.with_context(|| {
            let log = std::fs::read_to_string(path("log"));
            format!("flanneld said:\n{}", log.unwrap_or_default())
        })?;
        Self::with_pod(machine, subnet, Some(daemon), directory)
    }

    fn with_pod(
        machine: Machine,
        subnet: Ipv4Network,
        daemon: Option<Daemon>,
        directory: TempDir,
    ) -> Result<Self> {
        let host = &machine.netns;
        host.sysctl("net/ipv4/ip_forward", "1")?;
        let at = |offset| subnet.nth(offset).context("the subnet is large enough");
        let (gateway, ip) = (at(1)?, at(2)?);
        let pod = NetNs::new()?;
        let end = |netns, name, mac| VethEnd { netns, name, mac };
        NetNs::veth(
            end(&pod, "eth0", [2, 0, 0, 0, 9, 1]),
            end(host, "veth1", [2, 0, 0, 0, 9, 2]),
            1450,
        )?;
        host.ip(&format!("addr add {gateway}/{} dev veth1", subnet.prefix()))?;
        pod.ip(&format!(
            "addr add {ip}/{} dev eth0\nroute add default via {gateway}",
            subnet.prefix()
        ))?;
        Ok(Self {
            pod: Pod {
                netns: pod,
                ips: vec![ip.into()],
            },
            machine,
            daemon,
            _directory: directory,
        })
    }

    /// Drains the node, stops flanneld and removes what it left, as the page on coming from flannel says.
    ///
    /// # Errors
    ///
    /// When something is not there.
    pub fn leave(self) -> Result<Machine> {
        let Self {
            machine, daemon, ..
        } = self;
        drop(daemon);
        machine.netns.ip("link del veth1\nlink del flannel.1")?;
        Ok(machine)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
