//! What the answers say: the table's rows, and the faults that make the proof fail.

use super::table::{self, Row};
use super::{CELLS, Family, Kind, Outcome, Pod, Proof, Protocol, Tally, place};

/// Where a client stands, seen from the backend that answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    PodBeside,
    PodElsewhere,
    Host,
    Outside,
}

impl Proof {
    pub fn legend(&self) -> String {
        let pods = self
            .pods
            .iter()
            .map(|pod| format!("{} on {}", pod.name, pod.node));
        format!(
            "{} requests per client and row; backends: {}",
            self.requests,
            pods.collect::<Vec<_>>().join(", ")
        )
    }

    /// One row per position, protocol and family, over all clients in that position.
    pub fn rows(&self, outcomes: &[Outcome]) -> Vec<Row> {
        let mut rows = Vec::new();
        for position in Position::ALL {
            for (protocol, family) in CELLS {
                let fitting = outcomes
                    .iter()
                    .filter(|outcome| (outcome.protocol, outcome.family) == (protocol, family))
                    .filter(|outcome| position.covers(&self.clients[outcome.index].kind));
                rows.extend(self.row(position, protocol, family, &fitting.collect::<Vec<_>>()));
            }
        }
        rows
    }

    fn row(
        &self,
        position: Position,
        protocol: Protocol,
        family: Family,
        outcomes: &[&Outcome],
    ) -> Option<Row> {
        let mut counts = vec![0; self.pods.len()];
        let mut p50s = Vec::new();
        let (mut lost, mut spread) = (0, 0);
        for outcome in outcomes {
            let node = self.clients[outcome.index].node.name();
            for (pod, count) in self.pods.iter().zip(&mut counts) {
                if let Some(answers) = outcome.tally.backends.get(&pod.name)
                    && position.includes(pod.node == node)
                {
                    *count += answers.count;
                    p50s.push(answers.p50_us);
                }
            }
            lost += outcome.tally.sent - outcome.tally.replies;
            spread = spread.max(self.spread(&outcome.tally));
        }
        let replies: u32 = counts.iter().sum();
        if replies + lost == 0 {
            // With one node, or one pod per node, a position may have no client.
            return None;
        }
        Some(Row {
            position: position.label(),
            protocol: format!("{} {}", protocol.label(), family.label()),
            replies,
            requests: replies + lost,
            counts,
            spread,
            p50_us: table::median(p50s),
        })
    }

    /// The largest difference between the counts of any two backends.
    fn spread(&self, tally: &Tally) -> u32 {
        let count = |pod: &Pod| {
            tally
                .backends
                .get(&pod.name)
                .map_or(0, |answers| answers.count)
        };
        let most = self.pods.iter().map(count).max().unwrap_or(0);
        most - self.pods.iter().map(count).min().unwrap_or(0)
    }

    /// What is wrong: a lost reply, a stranger's reply, or TCP that is not round robin.
    pub fn faults(&self, outcomes: &[Outcome]) -> Vec<String> {
        let mut faults = Vec::new();
        for outcome in outcomes {
            let who = format!(
                "{}, {} {}",
                outcome.client,
                outcome.protocol.label(),
                outcome.family.label()
            );
            let tally = &outcome.tally;
            if tally.replies != tally.sent {
                faults.push(format!(
                    "{who}: {} of {} replies, errors {:?}",
                    tally.replies, tally.sent, tally.errors
                ));
            }
            for name in tally
                .backends
                .keys()
                .filter(|name| self.pods.iter().all(|pod| pod.name != **name))
            {
                faults.push(format!("{who}: {name} answered, which is no backend"));
            }
            if outcome.protocol == Protocol::Http && self.spread(tally) > 1 {
                let counts: Vec<String> = tally
                    .backends
                    .iter()
                    .map(|(name, answers)| format!("{name} {}", answers.count))
                    .collect();
                faults.push(format!(
                    "{who}: counts differ by {}: {}",
                    self.spread(tally),
                    counts.join(", ")
                ));
            }
        }
        faults
    }

    pub fn verdict(&self, outcomes: &[Outcome]) -> String {
        let sent: u32 = outcomes.iter().map(|outcome| outcome.tally.sent).sum();
        format!(
            "{sent} of {sent} requests answered; for TCP the counts of any two backends differ by at most 1 on every node.\nEach client's own counts: {}",
            place::folder().join("proof.json").display()
        )
    }
}

impl Position {
    const ALL: [Position; 4] = [
        Position::PodBeside,
        Position::PodElsewhere,
        Position::Host,
        Position::Outside,
    ];

    fn label(self) -> &'static str {
        match self {
            Position::PodBeside => "pod beside the backend",
            Position::PodElsewhere => "pod on another node",
            Position::Host => "host process on a node",
            Position::Outside => "outside machine by NodePort",
        }
    }

    fn covers(self, kind: &Kind) -> bool {
        match self {
            Position::PodBeside | Position::PodElsewhere => matches!(kind, Kind::Pod(_)),
            Position::Host => matches!(kind, Kind::Host),
            Position::Outside => matches!(kind, Kind::Outside),
        }
    }

    /// Whether an answer of a backend on the client's node, or on another, belongs to this row.
    fn includes(self, same_node: bool) -> bool {
        match self {
            Position::PodBeside => same_node,
            Position::PodElsewhere => !same_node,
            Position::Host | Position::Outside => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::{Answers, Service};
    use super::*;

    fn proof() -> Proof {
        let pod = |name: &str, node: &str| Pod {
            name: name.into(),
            node: node.into(),
            container: String::new(),
        };
        let service = Service {
            cluster_ips: vec!["10.96.0.9".into(), "fd00:10:96::9".into()],
            http_node_port: 30080,
            echo_node_port: 30900,
        };
        Proof::new(2, vec![pod("b", "n2"), pod("a", "n1")], service, 4)
    }

    fn outcome(index: usize, protocol: Protocol, counts: &[(&str, u32)]) -> Outcome {
        let answers = |count: &u32| Answers {
            count: *count,
            p50_us: 10.0,
        };
        let tally = Tally {
            sent: 4,
            replies: counts.iter().map(|(_, count)| count).sum(),
            p50_us: 10.0,
            backends: counts
                .iter()
                .map(|(name, count)| (name.to_string(), answers(count)))
                .collect(),
            errors: BTreeMap::new(),
        };
        Outcome {
            client: "client".into(),
            protocol,
            family: Family::Ipv4,
            tally,
            index,
        }
    }

    #[test]
    fn an_even_and_complete_run_has_no_fault() {
        assert!(
            proof()
                .faults(&[outcome(0, Protocol::Http, &[("a", 2), ("b", 2)])])
                .is_empty()
        );
    }

    #[test]
    fn a_lost_reply_is_a_fault() {
        assert!(
            proof().faults(&[outcome(0, Protocol::Udp, &[("a", 2), ("b", 1)])])[0]
                .contains("3 of 4 replies")
        );
    }

    #[test]
    fn a_backend_that_never_answers_tcp_is_a_fault() {
        assert!(
            proof().faults(&[outcome(0, Protocol::Http, &[("a", 4)])])[0].contains("differ by 4")
        );
    }

    #[test]
    fn uneven_udp_is_none() {
        assert!(
            proof()
                .faults(&[outcome(0, Protocol::Udp, &[("a", 4)])])
                .is_empty()
        );
    }

    #[test]
    fn an_answer_of_a_stranger_is_a_fault() {
        let faults = proof().faults(&[outcome(0, Protocol::Udp, &[("a", 2), ("stranger", 2)])]);
        assert!(faults[0].contains("no backend"));
    }

    #[test]
    fn a_pods_answers_are_split_by_where_the_backend_is() {
        let rows = proof().rows(&[outcome(0, Protocol::Http, &[("a", 1), ("b", 3)])]);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.position, row.counts.clone()))
            .collect();
        assert_eq!(
            shown,
            [
                ("pod beside the backend", vec![1, 0]),
                ("pod on another node", vec![0, 3])
            ]
        );
    }

    #[test]
    fn targets_are_the_cluster_ip_inside_and_the_node_port_outside() {
        let proof = proof();
        let target = |index: usize, protocol, family| {
            proof
                .target(&proof.clients[index], protocol, family)
                .unwrap()
        };
        assert_eq!(target(0, Protocol::Http, Family::Ipv4), "10.96.0.9:80");
        assert_eq!(
            target(1, Protocol::Udp, Family::Ipv6),
            "[fd00:10:96::9]:9000"
        );
        assert_eq!(
            target(2, Protocol::Http, Family::Ipv6),
            "[fd00:fa1e::11]:30080"
        );
        assert_eq!(
            target(5, Protocol::Udp, Family::Ipv4),
            "172.31.240.12:30900"
        );
    }
}
