//! Runs a script on a set of maps.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use node_agent_model::{Applied, Capacity, Change, Desired, MapSink, ObjectName, plan};
use node_agent_overlay::{
    AnnotationPrefix, Mode, Overlay, OverlayOptions, Peers, VtepMac, node_lease,
};
use node_agent_reflect::{Kind, Reflected};
use serde::Deserialize;

use crate::{Script, dump};

/// The node on which the scripts play.
const NODE: &str = "here";

/// How the objects of a step arrive.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub reversed: bool,
    /// Each object is planned and applied before the next one comes.
    pub one_by_one: bool,
}

impl Arrival {
    pub const ALL: [Self; 4] = [
        Self {
            reversed: false,
            one_by_one: false,
        },
        Self {
            reversed: true,
            one_by_one: false,
        },
        Self {
            reversed: false,
            one_by_one: true,
        },
        Self {
            reversed: true,
            one_by_one: true,
        },
    ];
}

/// Runs all steps and the clean-up; returns the dump after each step.
///
/// # Errors
///
/// When an object cannot be parsed, the maps refuse an operation, a restarted agent would change anything, or something
/// is left at the end.
pub fn run(
    script: &Script,
    arrival: Arrival,
    maps: &mut dyn MapSink,
) -> anyhow::Result<BTreeMap<u32, String>> {
    let mut agent = Agent::new(maps)?;
    let mut world: BTreeMap<String, Reflected> = BTreeMap::new();
    let mut dumps = BTreeMap::new();
    for (number, step) in &script.steps {
        let mut objects = parse(&step.yaml).with_context(|| format!("step {number}"))?;
        for name in step.delete.lines() {
            let Some((key, removal)) = removal(name) else {
                bail!("step {number}: {name:?} is no 'Kind namespace/name'")
            };
            ensure!(
                world.contains_key(&key),
                "step {number}: {name} is not there"
            );
            objects.push((key, removal, true));
        }
        if arrival.reversed {
            objects.reverse();
        }
        for (key, reflected, removed) in objects {
            agent.take(&reflected);
            if removed {
                world.remove(&key);
            } else {
                world.insert(key, reflected);
            }
            if arrival.one_by_one {
                agent.sync(maps)?;
            }
        }
        agent.sync(maps)?;
        dumps.insert(*number, dump(&maps.snapshot()?));
        let mut restarted = Agent::new(maps)?;
        world
            .values()
            .for_each(|reflected| restarted.take(reflected));
        let ops = plan(
            &mut restarted.desired,
            &mut restarted.applied,
            Duration::ZERO,
        )
        .ops;
        ensure!(
            ops.is_empty(),
            "step {number}: a restarted agent would change the maps: {ops:#?}"
        );
    }
    let mut left: Vec<String> = world.into_keys().collect();
    if arrival.reversed {
        left.reverse();
    }
    for name in left {
        let (_, removal) = removal(&name).context("keys of the world name objects")?;
        agent.take(&removal);
        if arrival.one_by_one {
            agent.sync(maps)?;
        }
    }
    agent.sync(maps)?;
    let end = maps.snapshot()?;
    ensure!(
        end.is_idle(),
        "the maps are not empty at the end:\n{}",
        dump(&end)
    );
    Ok(dumps)
}

struct Agent {
    desired: Desired,
    applied: Applied,
    peers: Peers,
    now: Duration,
}

impl Agent {
    fn new(maps: &dyn MapSink) -> anyhow::Result<Self> {
        let overlay = Overlay::new(OverlayOptions {
            node_name: NODE.to_owned(),
            mode: Mode::Vxlan,
            direct_routing: false,
            underlay_v4: Some("192.0.2.1".parse()?),
            underlay_v6: None,
            on_link: Vec::new(),
            uplink_mtu: 1500,
            port: 8472,
            vni: 1,
            mac: VtepMac([2, 0, 0, 0, 0, 1]),
        })?;
        let applied = Applied::restore(maps.snapshot()?, Capacity::default());
        Ok(Self {
            desired: Desired::new(NODE),
            applied,
            peers: Peers::new(overlay, NODE),
            now: Duration::ZERO,
        })
    }

    fn take(&mut self, reflected: &Reflected) {
        match reflected {
            Reflected::Change(change) => {
                self.desired.change(change.clone());
            }
            Reflected::Node { name, node } if name == NODE => {
                let node = node.clone().unwrap_or_default();
                let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                let addresses = match node.internal_ips {
                    none if none.is_empty() => none,
                    ips => ips.into_iter().chain(loopback).collect(),
                };
                self.desired.change(Change::NodeAddresses(addresses));
                self.desired.change(Change::Zone(node.zone));
            }
            Reflected::Node { name, node } => {
                let updates = match node
                    .as_ref()
                    .map(|node| node_lease(&AnnotationPrefix::default(), node))
                {
                    Some(Ok(lease)) => self.peers.put(lease),
                    Some(Err(_)) | None => self.peers.remove(name),
                };
                for change in updates.into_iter().flat_map(|update| update.changes) {
                    self.desired.change(change);
                }
            }
        }
    }

    fn sync(&mut self, maps: &mut dyn MapSink) -> anyhow::Result<()> {
        self.now += Duration::from_millis(100);
        let plan = plan(&mut self.desired, &mut self.applied, self.now);
        ensure!(plan.refused.is_empty(), "refused: {:?}", plan.refused);
        maps.apply(&plan.ops)?;
        ensure!(
            maps.snapshot()? == *self.applied.held(),
            "the maps hold something else than was planned"
        );
        Ok(())
    }
}

/// Name of the object, what it says, and that it stays.
fn parse(yaml: &str) -> anyhow::Result<Vec<(String, Reflected, bool)>> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(yaml) {
        let value = serde_yaml_ng::Value::deserialize(document)?;
        if value.is_null() {
            continue;
        }
        let kind = value
            .get("kind")
            .and_then(|kind| kind.as_str())
            .context("an object has no kind")?
            .to_owned();
        let (name, reflected) = match kind.as_str() {
            "Service" => reflect::<Service>(value)?,
            "EndpointSlice" => reflect::<EndpointSlice>(value)?,
            "Node" => reflect::<Node>(value)?,
            other => bail!("objects of kind {other} are not reflected"),
        };
        objects.push((format!("{kind} {name}"), reflected, false));
    }
    Ok(objects)
}

fn reflect<K: Kind>(value: serde_yaml_ng::Value) -> anyhow::Result<(ObjectName, Reflected)> {
    let object: K = serde_yaml_ng::from_value(value)?;
    let meta = object.meta();
    let name = meta.name.clone().context("an object has no name")?;
    let name = ObjectName::new(
        meta.namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        name,
    );
    let reflected = object.reflect(name.clone());
    Ok((name, reflected))
}

fn removal(text: &str) -> Option<(String, Reflected)> {
    let (kind, name) = text.split_once(' ')?;
    let (namespace, name) = name.split_once('/')?;
    let name = ObjectName::new(namespace, name);
    let reflected = match kind {
        "Service" => Service::removed(name),
        "EndpointSlice" => EndpointSlice::removed(name),
        "Node" => Node::removed(name),
        _ => return None,
    };
    Some((text.to_owned(), reflected))
}
