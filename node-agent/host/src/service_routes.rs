//! UDP and SCTP of the host's processes to addresses of Services that lie outside of the service CIDR. Nobody translates
//! these at the socket, so their packets must meet the program on `fairlead0`.
//!
//! The routes stand in a table of their own, for which rules ask with these two protocols alone (ip-rule(8), `ipproto`,
//! Linux 4.17): such an address may be a machine's, and what else goes there keeps its way.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily, IpProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use crate::{
    HostDevice, Network, NetworkError, RouteChanges,
    netlink::{errno, failed},
    route::PROTOCOL,
};

/// The table's number.
pub(crate) const TABLE: u32 = 64250;
/// After the kernel's own addresses (0), before everything else.
const PRIORITY: u32 = 250;
const PROTOCOLS: [IpProtocol; 2] = [IpProtocol::Udp, IpProtocol::Sctp];

impl Network {
    /// Makes UDP and SCTP to exactly these addresses go by `device`. Without an address of a family there is no rule in it
    /// either: each lookup of a route would ask it.
    ///
    /// # Errors
    ///
    /// As for [`Network::set_host_routes`].
    pub async fn set_service_routes(
        &self,
        device: &HostDevice,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<RouteChanges, NetworkError> {
        let prefixes: Vec<IpNetwork> = addresses.iter().copied().map(IpNetwork::from).collect();
        let mut changes = self.set_routes(device, TABLE, &prefixes).await?;
        for version in [IpVersion::V4, IpVersion::V6] {
            let of_family = |ip: &IpAddr| ip.is_ipv4() == matches!(version, IpVersion::V4);
            let wanted: &[IpProtocol] = match addresses.iter().any(of_family) {
                true => &PROTOCOLS,
                false => &[],
            };
            let rules = self.set_rules(&version, wanted).await?;
            changes.added += rules.added;
            changes.removed += rules.removed;
        }
        Ok(changes)
    }

    /// Our rules, in words.
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn service_rules(&self) -> Result<Vec<String>, NetworkError> {
        let mut found = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules = self.rules(&version).await?;
            found.extend(rules.iter().map(in_words));
        }
        Ok(found)
    }

    /// Removes what [`Network::service_rules`] answers, and answers the same.
    ///
    /// # Errors
    ///
    /// A failed netlink request.
    pub async fn remove_service_rules(&self) -> Result<Vec<String>, NetworkError> {
        let found = self.service_rules().await?;
        for version in [IpVersion::V4, IpVersion::V6] {
            self.set_rules(&version, &[]).await?;
        }
        Ok(found)
    }

    async fn set_rules(
        &self,
        version: &IpVersion,
        wanted: &[IpProtocol],
    ) -> Result<RouteChanges, NetworkError> {
        let mut changes = RouteChanges::default();
        let mut missing = wanted.to_vec();
        for rule in self.rules(version).await? {
            let right = |protocol: &IpProtocol| {
                rule.attributes
                    .contains(&RuleAttribute::IpProtocol(*protocol))
                    && rule.attributes.contains(&RuleAttribute::Priority(PRIORITY))
            };
            if let Some(at) = missing.iter().position(right) {
                missing.remove(at);
                continue;
            }
            let operation = failed(format!("remove the rule of {}", in_words(&rule)));
            match self.handle.rule().del(rule).execute().await {
                Err(error) if errno(&error) == libc::ENOENT => {}
                other => other.map_err(operation)?,
            }
            changes.removed += 1;
        }
        for protocol in missing {
            self.add_rule(version, protocol).await?;
            changes.added += 1;
        }
        Ok(changes)
    }

    async fn add_rule(
        &self,
        version: &IpVersion,
        protocol: IpProtocol,
    ) -> Result<(), NetworkError> {
        let mut request = self.handle.rule().add();
        let message = request.message_mut();
        message.header.family = family(version);
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Table(TABLE),
            RuleAttribute::Priority(PRIORITY),
            RuleAttribute::IpProtocol(protocol),
            RuleAttribute::Protocol(PROTOCOL),
        ];
        let operation = failed(format!("write the rule of {}", in_words(message)));
        match request.execute().await {
            Err(error) if errno(&error) == libc::EEXIST => Ok(()),
            other => other.map_err(operation),
        }
    }

    async fn rules(&self, version: &IpVersion) -> Result<Vec<RuleMessage>, NetworkError> {
        let rules: Vec<RuleMessage> = self
            .list(|handle| handle.rule().get(version.clone()).execute())
            .await
            .map_err(failed("list the rules of routes"))?;
        let ours = |rule: &RuleMessage| rule.attributes.contains(&RuleAttribute::Table(TABLE));
        Ok(rules.into_iter().filter(ours).collect())
    }
}

fn family(version: &IpVersion) -> AddressFamily {
    match version {
        IpVersion::V4 => AddressFamily::Inet,
        IpVersion::V6 => AddressFamily::Inet6,
    }
}

fn in_words(rule: &RuleMessage) -> String {
    let mut attributes = rule.attributes.iter();
    let protocol = attributes.find_map(|attribute| match attribute {
        RuleAttribute::IpProtocol(protocol) => Some(format!("{protocol:?}").to_uppercase()),
        _ => None,
    });
    let family = match rule.header.family {
        AddressFamily::Inet => "IPv4",
        _ => "IPv6",
    };
    let protocol = protocol.unwrap_or_else(|| "everything".to_owned());
    format!("{protocol} over {family}: table {TABLE}")
}
