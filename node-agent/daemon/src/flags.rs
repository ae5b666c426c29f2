//! What the operator says.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::RangedI64ValueParser;
use clap::{ArgAction, Parser, value_parser};
use ipnetwork::IpNetwork;
use node_agent_maps::Sizes;
use node_agent_model::Algorithm;
use node_agent_overlay::{AnnotationPrefix, Checksum, Mode};

use crate::device::Xdp;

/// The node agent of Fairlead: services, overlay and pods of one node.
#[derive(Clone, Debug, Parser)]
#[command(name = "fairlead-node-agent", version)]
pub struct Flags {
    /// Name of this machine's Node object.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// URL of the API server, plain HTTP; without it and --kubeconfig the service account of the pod is used.
    #[arg(long, value_name = "URL", conflicts_with = "kubeconfig")]
    pub server: Option<::http::Uri>,

    /// File that says where the API server is and who we are.
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,

    /// File of Services and EndpointSlices, followed, in place of an API server; no pods are run then. See
    /// docs/static-mode.md.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["server", "kubeconfig"], requires = "pod_cidr")]
    pub services_file: Option<PathBuf>,

    /// Ranges of this node's pods, at most one a family, with --services-file; otherwise its Node says them.
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        requires = "services_file"
    )]
    pub pod_cidr: Vec<IpNetwork>,

    /// Interface towards the other nodes [default: that of the default route].
    #[arg(long, value_name = "IFNAME")]
    pub uplink: Option<String>,

    /// Ranges of ClusterIPs, at most one a family.
    #[arg(
        long,
        value_name = "CIDR,...",
        value_delimiter = ',',
        default_value = "10.96.0.0/16,fd00:10:96::/112"
    )]
    pub service_cidr: Vec<IpNetwork>,

    /// Ranges of this node's addresses that serve NodePorts [default: all of them, and 127.0.0.1 and ::1 for processes
    /// of the host].
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub node_port_addresses: Vec<IpNetwork>,

    /// Destinations outside of the cluster to which pods keep their own address, where all others see the node's.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub non_masquerade_cidrs: Vec<IpNetwork>,

    /// How a new connection gets its backend, for Services that do not say it themselves: round-robin, random or maglev.
    #[arg(long, value_name = "NAME", default_value = "round-robin")]
    pub service_algorithm: Algorithm,

    /// IPv4 connections, and twice as many as of IPv6, of which the node keeps track; their memory is taken at once
    /// [default: 65536, more or less by the memory of the machine].
    #[arg(long, value_name = "N", value_parser = entries())]
    pub conntrack_max: Option<u32>,

    /// Ports of Services, and the addresses and ports at which they are asked for in each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT_SERVICES, value_parser = entries())]
    pub services_max: u32,

    /// Addresses and ports of endpoints in each family.
    #[arg(long, value_name = "N", default_value_t = Sizes::DEFAULT_ENDPOINTS, value_parser = entries())]
    pub endpoints_max: u32,

    /// Clients whose backends are remembered for Services with session affinity; their memory is taken at once [default:
    /// that of --conntrack-max].
    #[arg(long, value_name = "N", value_parser = entries())]
    pub affinity_max: Option<u32>,

    /// How packets go to other nodes: vxlan or udp (both as flannel's), or direct (routed on a shared link, as flannel's
    /// host-gw).
    #[arg(long, value_name = "MODE", default_value = "vxlan")]
    pub overlay: Mode,

    /// With --overlay=vxlan: packets to nodes on the uplink's own link go as they are, as with flannel's DirectRouting.
    #[arg(long)]
    pub direct_routing: bool,

    /// UDP port of the overlay [default: flannel's, 8472 for vxlan and 8285 for udp].
    #[arg(long, value_name = "PORT")]
    pub overlay_port: Option<u16>,

    /// Outer UDP checksum of packets to other nodes: on, off, or auto: on with vxlan over IPv6, where flannel's nodes want
    /// it.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub overlay_checksum: Checksum,

    /// Encapsulate by the kernel's VXLAN device, set up as flannel's, and not by our programs: slower, for kernels that
    /// refuse them the room.
    #[arg(long)]
    pub vxlan_device: bool,

    /// With --overlay=vxlan: what comes from outside for a backend of another node is handed on to that node as it is, and
    /// that node answers the client itself, in the name of the address that was asked; among the nodes that have this flag.
    /// The network between nodes and clients must let such answers through.
    #[arg(long)]
    pub direct_server_return: bool,

    /// Spoils the programs' outer checksums in the test of them at the start, to rehearse what then happens.
    #[arg(long, hide = true)]
    pub rehearse_wrong_checksums: bool,

    /// VXLAN network identifier.
    #[arg(long, default_value_t = 1)]
    pub vni: u32,

    /// Flannel's net-conf.json: says mode, port and VNI in place of the flags, and the whole network for --subnet-env.
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with_all = ["overlay", "direct_routing", "overlay_port", "vni", "flannel_etcd_endpoints"]
    )]
    pub net_conf: Option<PathBuf>,

    /// What the names of flannel's annotations begin with, as in flannel: a domain, or DOMAIN/NAME.
    #[arg(
        long,
        value_name = "PREFIX",
        default_value = "flannel.alpha.coreos.com"
    )]
    pub kube_annotation_prefix: AnnotationPrefix,

    /// URLs of the etcd where flannel keeps its leases; without them Nodes are the leases, as with flannel's
    /// kube-subnet-mgr.
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pub flannel_etcd_endpoints: Vec<String>,

    /// Where in etcd flannel's keys are.
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network")]
    pub flannel_etcd_prefix: String,

    /// Certificate authority of etcd, in PEM.
    #[arg(long, value_name = "PATH")]
    pub flannel_etcd_cafile: Option<PathBuf>,

    /// Certificate that is shown to etcd, in PEM.
    #[arg(long, value_name = "PATH", requires = "flannel_etcd_cafile")]
    pub flannel_etcd_certfile: Option<PathBuf>,

    /// Its private key, in PEM.
    #[arg(long, value_name = "PATH", requires = "flannel_etcd_cafile")]
    pub flannel_etcd_keyfile: Option<PathBuf>,

    /// File for flannel's CNI plugin; written where the whole network is known, by --net-conf or from etcd.
    #[arg(long, value_name = "PATH", default_value = "/run/flannel/subnet.env")]
    pub subnet_env: PathBuf,

    /// Directory on a bpffs where maps, programs and links are pinned.
    #[arg(long, value_name = "PATH", default_value = ebpf_abi::maps::PIN_DIR)]
    pub pin_dir: PathBuf,

    /// cgroup (version 2) whose sockets are balanced at connect [default: the root of the hierarchy].
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,

    /// Socket of this node's Docker daemon.
    #[arg(long, value_name = "PATH", default_value = "/var/run/docker.sock")]
    pub docker_socket: PathBuf,

    /// Image of the container that holds a pod's namespaces; it must be on the node.
    #[arg(long, value_name = "IMAGE", default_value = "fairlead/pause:latest")]
    pub pause_image: String,

    /// Run pods on Docker and register the Node; false beside another kubelet.
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    pub kubelet: bool,

    /// Port of the kubelet's API (logs, exec, port-forward) on the node's address, for the API server alone; 0: none. It
    /// is served only where the API server is on this machine or on the development cluster's link: there is no TLS yet.
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub kubelet_port: u16,

    /// Serve the CNI plugin and install it, where no kubelet of ours runs; false beside another CNI plugin.
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    pub cni: bool,

    /// UNIX socket by which the CNI plugin asks.
    #[arg(long, value_name = "PATH", default_value = node_agent_cni::DEFAULT_SOCKET)]
    pub cni_socket: PathBuf,

    /// Where the container runtime looks for CNI plugins.
    #[arg(long, value_name = "PATH", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,

    /// Where the container runtime looks for CNI configurations.
    #[arg(long, value_name = "PATH", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,

    /// Balance TCP at connect; false: every packet is translated.
    #[arg(long, action = ArgAction::Set, default_value_t = true, value_name = "BOOL")]
    pub socket_lb: bool,

    /// Close connections of pods and processes that were balanced at connect, once no Service has their backend any
    /// more; false: they end when TCP finds out.
    #[arg(long, action = ArgAction::Set, default_value_t = false, value_name = "BOOL")]
    pub close_gone_connections: bool,

    /// Send NodePorts of other nodes' backends, and their answers, on at the uplink's device: auto (native where that is a
    /// gain), native, generic or off.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Xdp::Auto)]
    pub xdp: Xdp,

    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10256")]
    pub listen: SocketAddr,

    /// Where leases of pod addresses and volumes are kept.
    #[arg(long, value_name = "PATH", default_value = node_agent_host::STATE_DIR)]
    pub state_dir: PathBuf,
}

/// What a map may be made to hold.
fn entries() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(1024..=1 << 20)
}

impl Flags {
    /// How many entries the maps have.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell the machine's memory.
    pub fn sizes(&self) -> io::Result<Sizes> {
        let machine = Sizes::for_this_machine()?;
        let conntrack = self.conntrack_max.unwrap_or(machine.conntrack);
        Ok(Sizes {
            conntrack,
            services: self.services_max,
            endpoints: self.endpoints_max,
            affinity: self.affinity_max.unwrap_or(conntrack),
        })
    }

    pub fn overlay_port(&self) -> u16 {
        self.overlay_port
            .unwrap_or_else(|| self.overlay.default_port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_node_is_all_that_must_be_said() {
        let flags = Flags::try_parse_from(["fairlead-node-agent", "--node-name=n1"]).unwrap();
        assert_eq!(flags.service_cidr.len(), 2);
        assert_eq!(flags.overlay, Mode::Vxlan);
        assert!(flags.kubelet && flags.socket_lb);
    }

    #[test]
    fn a_file_of_services_wants_the_range_of_pods_and_no_api_server() {
        let parse = |flags: &[&str]| {
            let always = ["fairlead-node-agent", "--node-name=n1"];
            Flags::try_parse_from(always.iter().chain(flags)).map_err(|error| error.to_string())
        };
        parse(&["--services-file=s.yaml", "--pod-cidr=10.244.1.0/24"]).unwrap();
        let error = parse(&["--services-file=s.yaml"]).unwrap_err();
        assert!(error.contains("--pod-cidr"), "{error}");
        let error = parse(&["--pod-cidr=10.244.1.0/24"]).unwrap_err();
        assert!(error.contains("--services-file"), "{error}");
        let error = parse(&[
            "--services-file=s.yaml",
            "--pod-cidr=10.244.1.0/24",
            "--server=http://x",
        ]);
        assert!(error.unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn a_wrong_flag_is_named_with_the_way_out() {
        let parse = |flag: &str| {
            Flags::try_parse_from(["fairlead-node-agent", "--node-name=n1", flag])
                .unwrap_err()
                .to_string()
        };
        assert!(
            parse("--overlay=ipip").contains("choose vxlan, udp or direct"),
            "{}",
            parse("--overlay=ipip")
        );
        let checksum = parse("--overlay-checksum=maybe");
        assert!(checksum.contains("choose auto, on or off"), "{checksum}");
        assert!(parse("--service-cidr=10.96.0.0/99").contains("--service-cidr"));
        assert!(parse("--kubelet=maybe").contains("--kubelet"));
        let few = parse("--conntrack-max=10");
        assert!(
            few.contains("--conntrack-max") && few.contains("1024"),
            "{few}"
        );
    }
}
