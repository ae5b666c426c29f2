//! ClusterIPs and node ports: who has which, without two ever having the same.
//!
//! A value is taken by creating its key in the same store transaction that writes the Service, so an allocation
//! is exactly as durable as its owner, and two API servers over one store cannot hand one value out twice. What is
//! kept in memory only helps to guess a free value at the first try.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Mutex;

use ipnetwork::IpNetwork;
use rand::Rng;
use serde_json::{Value, json};

use crate::json::Json;
use crate::meta;

/// Kubernetes' keys of `IPAddress` objects.
pub const IP_PREFIX: &str = "/registry/ipaddresses/";
/// One key for each node port, under Kubernetes' prefix of ranges.
pub const PORT_PREFIX: &str = "/registry/ranges/servicenodeports/";

/// The ranges, and what is known to be taken of them.
#[derive(Debug)]
pub struct Claims {
    /// Of Services, the primary family first; at most one of each family.
    service_cidrs: Vec<IpNetwork>,
    node_ports: RangeInclusive<u16>,
    taken: Mutex<HashSet<String>>,
}

/// An address family, by the word of `spec.ipFamilies`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    IPv4,
    IPv6,
}

impl Family {
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::IPv4 } else { Self::IPv6 }
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }

    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::IPv4, Self::IPv6]
            .into_iter()
            .find(|f| f.word() == word)
    }
}

impl Claims {
    #[must_use]
    pub fn new(service_cidrs: Vec<IpNetwork>, node_ports: RangeInclusive<u16>) -> Self {
        Self {
            service_cidrs,
            node_ports,
            taken: Mutex::default(),
        }
    }

    /// The families that Services can have, the primary one first.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        self.service_cidrs
            .iter()
            .map(|c| Family::of(c.ip()))
            .collect()
    }

    /// The ranges, the primary one first.
    #[must_use]
    pub fn service_cidrs(&self) -> Vec<String> {
        self.service_cidrs.iter().map(ToString::to_string).collect()
    }

    #[must_use]
    pub fn service_cidr(&self, family: Family) -> Option<&IpNetwork> {
        self.service_cidrs
            .iter()
            .find(|c| Family::of(c.ip()) == family)
    }

    #[must_use]
    pub fn node_ports(&self) -> &RangeInclusive<u16> {
        &self.node_ports
    }

    /// The address of Service `default/kubernetes`: the first one of the primary range.
    #[must_use]
    pub fn kubernetes_ip(&self) -> Option<IpAddr> {
        self.service_cidrs.first().map(|c| nth(c, 1))
    }

    /// An address that is probably free, from the upper part of the range as long as it has some: the lower part is
    /// for those who ask for a certain address
    /// (<https://kubernetes.io/docs/concepts/services-networking/cluster-ip-allocation/>).
    #[must_use]
    pub fn free_ip(&self, family: Family) -> Option<IpAddr> {
        let cidr = self.service_cidr(family)?;
        let taken = self.lock();
        let bits = if cidr.is_ipv4() { 32 } else { 128 };
        let size = 1u128 << u32::from(bits - cidr.prefix()).min(64);
        // Without the network's own address, and for IPv4 without the broadcast address.
        let last = if cidr.is_ipv4() {
            size.saturating_sub(2)
        } else {
            size - 1
        };
        let band = (size / 16).clamp(16, 256).min(last);
        let free = |n: u128| {
            let ip = nth(cidr, n);
            (!taken.contains(&ip_key(ip))).then_some(ip)
        };
        pick(band + 1, last, free).or_else(|| pick(1, band, free))
    }

    /// A node port that is probably free and that `admits`, from the upper part of the range first.
    #[must_use]
    pub fn free_port(&self, admits: impl Fn(u16) -> bool) -> Option<u16> {
        let taken = self.lock();
        let (first, last) = (
            u128::from(*self.node_ports.start()),
            u128::from(*self.node_ports.end()),
        );
        let band = ((last - first + 1) / 32).clamp(16, 128).min(last - first);
        let free = |n: u128| {
            let port = u16::try_from(n).ok()?;
            (admits(port) && !taken.contains(&port_key(port))).then_some(port)
        };
        pick(first + band, last, free).or_else(|| pick(first, first + band, free))
    }

    /// Notes that the key exists.
    pub fn note_taken(&self, key: &str) {
        self.lock().insert(key.to_owned());
    }

    /// Notes that the key is gone.
    pub fn note_free(&self, key: &str) {
        self.lock().remove(key);
    }

    /// Forgets everything: the next full read of the store says it anew.
    pub fn reset(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.taken
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The key that takes an address.
#[must_use]
pub fn ip_key(ip: IpAddr) -> String {
    format!("{IP_PREFIX}{ip}")
}

/// The key that takes a node port.
#[must_use]
pub fn port_key(port: u16) -> String {
    format!("{PORT_PREFIX}{port}")
}

/// What stands under a taken key: who has it. For addresses it is an `IPAddress` of `networking.k8s.io/v1`.
#[must_use]
pub fn holder(name: &str, service: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IPAddress",
        "metadata": {
            "name": name,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": meta::now(),
        },
        "spec": {"parentRef": {
            "group": "",
            "resource": "services",
            "namespace": service.text("/metadata/namespace"),
            "name": service.text("/metadata/name"),
        }},
    })
}

/// The first number from `low` to `high`, beginning somewhere at random, that `free` accepts.
fn pick<T>(low: u128, high: u128, free: impl Fn(u128) -> Option<T>) -> Option<T> {
    /// Enough for every range that Kubernetes allows; beyond, a range is as good as full.
    const TRIES: u128 = 1 << 20;
    if high < low {
        return None;
    }
    let size = high - low + 1;
    let start = rand::rng().random_range(0..size);
    (0..size.min(TRIES)).find_map(|step| free(low + (start + step) % size))
}

fn nth(cidr: &IpNetwork, n: u128) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(base) => {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            Ipv4Addr::from_bits(base.to_bits().wrapping_add(n)).into()
        }
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits().wrapping_add(n)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(cidr: &str) -> Claims {
        Claims::new(vec![cidr.parse().unwrap()], 30000..=30002)
    }

    #[test]
    fn a_range_is_used_to_its_last_address_and_then_says_no() {
        let claims = claims("10.0.0.0/28");
        let mut seen = HashSet::new();
        while let Some(ip) = claims.free_ip(Family::IPv4) {
            assert!(seen.insert(ip), "{ip} twice");
            claims.note_taken(&ip_key(ip));
        }
        assert_eq!(seen.len(), 14);
        assert!(!seen.contains(&"10.0.0.0".parse().unwrap()));
        assert!(!seen.contains(&"10.0.0.15".parse().unwrap()));
        assert_eq!(claims.free_ip(Family::IPv6), None);
        assert_eq!(claims.kubernetes_ip(), Some("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn node_ports_come_back_when_they_are_freed() {
        let claims = claims("fd00::/112");
        let ports: Vec<u16> = std::iter::from_fn(|| {
            let port = claims.free_port(|_| true)?;
            claims.note_taken(&port_key(port));
            Some(port)
        })
        .collect();
        assert_eq!(ports.len(), 3);
        claims.note_free(&port_key(30001));
        assert_eq!(claims.free_port(|_| true), Some(30001));
    }
}
