//! Which registry keeps the leases, by the flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use node_agent_host::Uplink;
use node_agent_overlay::{
    Backend, EtcdOptions, EtcdRegistry, KubeRegistry, NetConf, OwnLease, Registry, RegistryError,
    SubnetEnv,
};

use crate::flags::Flags;
use crate::readiness::Readiness;
use crate::static_registry::StaticRegistry;

const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// The registry, and what it or the operator says of the whole network.
#[derive(Debug)]
pub struct Source {
    pub registry: Arc<dyn Registry>,
    /// The same one, where Nodes are leases: it must be told of them.
    pub nodes: Option<Arc<KubeRegistry>>,
    pub config: Option<NetConf>,
}

impl Source {
    /// # Errors
    ///
    /// When the flags contradict each other, or a configuration cannot serve.
    pub async fn open(
        flags: &Flags,
        client: Option<&kube::Client>,
        uplink: &Uplink,
        readiness: &Readiness,
    ) -> anyhow::Result<Self> {
        if !flags.flannel_etcd_endpoints.is_empty() {
            return Self::etcd(flags, uplink, readiness).await;
        }
        let config = match &flags.net_conf {
            Some(path) => {
                let text = read(path)?;
                Some(
                    NetConf::parse(&text)
                        .with_context(|| format!("--net-conf {}", path.display()))?,
                )
            }
            None => None,
        };
        let Some(client) = client else {
            let registry = StaticRegistry {
                node_name: flags.node_name.clone(),
                pod_cidrs: flags.pod_cidr.clone(),
            };
            return Ok(Self {
                registry: Arc::new(registry),
                nodes: None,
                config,
            });
        };
        let nodes = Arc::new(KubeRegistry::new(
            client.clone(),
            &flags.node_name,
            flags.kube_annotation_prefix.clone(),
        ));
        Ok(Self {
            registry: nodes.clone(),
            nodes: Some(nodes),
            config,
        })
    }

    async fn etcd(flags: &Flags, uplink: &Uplink, readiness: &Readiness) -> anyhow::Result<Self> {
        let mut options = EtcdOptions::new(flags.flannel_etcd_endpoints.clone());
        flags
            .flannel_etcd_prefix
            .trim_end_matches('/')
            .clone_into(&mut options.prefix);
        options.public_ip = uplink.v4.first().copied();
        options.earlier = SubnetEnv::subnets_of(&flags.subnet_env);
        if let Some(authority) = &flags.flannel_etcd_cafile {
            let pair = match (&flags.flannel_etcd_certfile, &flags.flannel_etcd_keyfile) {
                (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
                (None, None) => None,
                _ => bail!(
                    "--flannel-etcd-certfile and --flannel-etcd-keyfile go together: give both"
                ),
            };
            let identity = pair
                .as_ref()
                .map(|(certificate, key)| (&certificate[..], &key[..]));
            options = options.with_tls(&read(authority)?, identity);
        }
        let registry = loop {
            match EtcdRegistry::open(options.clone()).await {
                Ok(registry) => break Arc::new(registry),
                Err(error @ (RegistryError::Etcd { .. } | RegistryError::NoConfig { .. })) => {
                    readiness.stage(format!("{:#}", anyhow::Error::from(error)));
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error).context("--flannel-etcd-endpoints"),
            }
        };
        let config = Some(registry.config().clone());
        Ok(Self {
            registry,
            nodes: None,
            config,
        })
    }

    /// How packets go: as the network's configuration says, else as the flags do.
    pub fn backend(&self, flags: &Flags) -> Backend {
        let by_flags = Backend {
            mode: flags.overlay,
            direct_routing: flags.direct_routing,
            vni: flags.vni,
            port: flags.overlay_port(),
        };
        self.config.as_ref().map_or(by_flags, |conf| conf.backend)
    }

    /// Writes what flannel's CNI plugin reads, where the whole network is known.
    ///
    /// # Errors
    ///
    /// When the file cannot be written, or a subnet lies outside of the network.
    pub fn write_subnet_env(&self, path: &Path, own: &OwnLease, mtu: u32) -> anyhow::Result<()> {
        let Some(config) = &self.config else {
            return Ok(());
        };
        let networks: Vec<_> = config.ranges.iter().map(|range| range.network).collect();
        for subnet in &own.subnets {
            let inside = |network: &ipnetwork::IpNetwork| network.contains(subnet.network());
            if !networks.iter().any(inside) {
                bail!("this node's subnet {subnet} does not lie in the Network of net-conf.json");
            }
        }
        let env = SubnetEnv {
            networks,
            subnets: own.subnets.clone(),
            mtu,
            masquerades: true,
        };
        Ok(env.write(path)?)
    }
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}
