//! What a kube-proxy left, or still keeps, on this node: its rules would translate packets before or after ours.
//!
//! Looked for by what kube-proxy names them: chains `KUBE-*` (iptables and ipvs modes), nftables tables `kube-proxy`,
//! the interface `kube-ipvs0`. <https://kubernetes.io/docs/reference/networking/virtual-ips/#proxy-modes>

use std::{ffi::CStr, process::Command};

/// What was found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KubeProxyRules {
    /// In words, with the command that shows them.
    pub found: Vec<String>,
    /// Where nobody could look, and why.
    pub unseen: Vec<String>,
}

/// The dumps of rules that are looked at.
const IPTABLES: [&str; 4] = [
    "iptables-legacy-save",
    "ip6tables-legacy-save",
    "iptables-nft-save",
    "ip6tables-nft-save",
];
/// The one name that a system without the two kinds has.
const PLAIN: [&str; 2] = ["iptables-save", "ip6tables-save"];
const IPVS_DEVICE: &CStr = c"kube-ipvs0";

/// Looks in the network namespace of the calling thread. Runs commands, so it takes some milliseconds.
pub fn kube_proxy_rules() -> KubeProxyRules {
    let mut rules = KubeProxyRules::default();
    let seen = IPTABLES.map(|command| rules.look(command, &[], kube_chains));
    if seen.iter().all(|seen| !seen) {
        let seen = PLAIN.map(|command| rules.look(command, &[], kube_chains));
        if seen.iter().all(|seen| !seen) {
            rules.unseen.push("iptables-save is not installed".into());
        }
    }
    if !rules.look("nft", &["list", "tables"], kube_tables) {
        rules.unseen.push("nft is not installed".into());
    }
    if nix::net::if_::if_nametoindex(IPVS_DEVICE).is_ok() {
        rules
            .found
            .push("the interface kube-ipvs0 (ip addr show kube-ipvs0)".into());
    }
    rules
}

impl KubeProxyRules {
    /// Runs a command and notes what `find` makes of its output; false if there is no such command.
    fn look(&mut self, command: &str, args: &[&str], find: fn(&str) -> Vec<String>) -> bool {
        let Ok(output) = Command::new(command).args(args).output() else {
            return false;
        };
        let shown = [&[command], args].concat().join(" ");
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            let reason = reason
                .lines()
                .next()
                .unwrap_or("no reason given")
                .to_owned();
            self.unseen.push(format!("{shown}: {reason}"));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let found = find(&text).into_iter();
        self.found
            .extend(found.map(|what| format!("{what} ({shown})")));
        true
    }
}

/// Of the output of iptables-save(8): `*nat` begins a table, `:KUBE-SERVICES - [0:0]` declares a chain.
fn kube_chains(text: &str) -> Vec<String> {
    let mut table = "";
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if line.starts_with(":KUBE-") {
            match counts.last_mut() {
                Some((name, count)) if *name == table => *count += 1,
                _ => counts.push((table, 1)),
            }
        }
    }
    let text = |(table, count)| format!("{count} chains KUBE-* in table {table}");
    counts.into_iter().map(text).collect()
}

/// Of `nft list tables`: `table ip kube-proxy`.
fn kube_tables(text: &str) -> Vec<String> {
    let ours = |line: &&str| line.split_whitespace().nth(2) == Some("kube-proxy");
    let tables = text.lines().filter(ours);
    tables
        .map(|line| format!("nftables {}", line.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_counted_by_table_and_those_of_others_are_not() {
        let text = "# Generated\n*mangle\n:PREROUTING ACCEPT [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n\
            *nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
            -A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(
            kube_chains(text),
            [
                "1 chains KUBE-* in table mangle",
                "2 chains KUBE-* in table nat"
            ]
        );
        assert!(kube_chains("*nat\n:DOCKER - [0:0]\nCOMMIT\n").is_empty());
    }

    #[test]
    fn only_tables_that_are_named_kube_proxy_count() {
        let text = "table inet filter\ntable ip kube-proxy\ntable ip6 kube-proxy\ntable ip kube-proxy-old\n";
        let expected = [
            "nftables table ip kube-proxy",
            "nftables table ip6 kube-proxy",
        ];
        assert_eq!(kube_tables(text), expected);
    }
}
