//! A pod without a container: a network namespace that the plugin attached.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests_testkit::NetNs;

use crate::Agent;

/// One address a family, IPv4 first.
#[derive(Debug)]
pub struct Pod {
    pub netns: NetNs,
    pub ips: Vec<IpAddr>,
}

impl Agent {
    /// Attaches a container with a namespace of its own; also gives the plugin's result.
    ///
    /// # Errors
    ///
    /// When the plugin fails, with what it printed.
    pub fn attach(&self, container: &str, more: &Value) -> Result<(Pod, Value)> {
        let netns = NetNs::new()?;
        let conf = self.plugin().conf("1.1.0", more);
        let result = self.plugin().call("ADD", container, &netns.path(), &conf)?;
        let ips = result["ips"].as_array().context("no addresses")?.iter();
        let ips = ips.map(|ip| {
            let text = ip["address"].as_str().unwrap_or_default();
            Ok(text.split('/').next().unwrap_or_default().parse()?)
        });
        let ips = ips.collect::<Result<_>>()?;
        Ok((Pod { netns, ips }, result))
    }

    /// As [`Agent::attach`], as the plugin is configured by default.
    ///
    /// # Errors
    ///
    /// When the plugin fails.
    pub fn pod(&self, container: &str) -> Result<Pod> {
        Ok(self.attach(container, &json!({}))?.0)
    }
}

impl Pod {
    /// Makes a connection from a namespace to each of the pod's addresses.
    ///
    /// # Errors
    ///
    /// When one does not come about within a second and a half.
    pub fn answers(&self, from: &NetNs) -> Result<()> {
        for ip in &self.ips {
            self.sees(from, *ip)?;
        }
        Ok(())
    }

    /// As [`Pod::answers`], from another pod, whose own address must be seen.
    ///
    /// # Errors
    ///
    /// The same, and when there is NAT between the two.
    pub fn answers_pod(&self, from: &Pod) -> Result<()> {
        for ip in &self.ips {
            let seen = self.sees(&from.netns, *ip)?;
            ensure!(from.ips.contains(&seen), "seen as {seen}");
        }
        Ok(())
    }

    /// Makes a connection from a namespace to one of the pod's addresses, and answers who the pod sees.
    ///
    /// # Errors
    ///
    /// As [`Pod::answers`].
    pub fn sees(&self, from: &NetNs, ip: IpAddr) -> Result<IpAddr> {
        let server = self.netns.run(|| TcpListener::bind((ip, 0)))?;
        let address = server.local_addr()?;
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(1500));
        let _client = from
            .run(connect)
            .with_context(|| format!("connect to {address}"))?;
        Ok(server.accept()?.1.ip())
    }
}
