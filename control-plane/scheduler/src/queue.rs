//! Which Pods wait, and what to do next. No IO: events and outcomes go in, one piece of work at a time comes out.
//!
//! A Pod is counted on its Node from the moment of the decision (it is assumed), so that the next decision does not
//! wait for the API server. An assumed Pod that cannot be bound gives its place back and is tried again.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::decide::{Unschedulable, decide};
use crate::node::NodeFacts;
use crate::pod::{PodFacts, PodKey};

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub cluster: Cluster,
    /// Every Pod that waits for a Node, assumed or not.
    waiting: HashMap<PodKey, PodFacts>,
    /// Those to decide on, the most important and then the oldest first.
    active: BTreeSet<(Reverse<i32>, Option<Timestamp>, PodKey)>,
    /// Those that fit nowhere until something changes.
    parked: HashSet<PodKey>,
    /// What was said of a Pod that fits nowhere; it is not said twice.
    reported: HashMap<PodKey, Unschedulable>,
    /// Decided but not yet seen bound: the Pod's uid.
    assumed: HashMap<PodKey, String>,
    failures: HashMap<PodKey, u32>,
    later: BTreeSet<(Instant, PodKey)>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Work {
    Bind { pod: PodFacts, node: String },
    Report { pod: PodFacts, why: Unschedulable },
}

impl Queue {
    pub(crate) fn set_node(&mut self, node: NodeFacts) {
        if self.cluster.set_node(node) {
            self.unpark();
        }
    }

    pub(crate) fn set_pod(&mut self, pod: PodFacts) {
        let key = pod.key();
        if let Some(node) = pod.node.clone() {
            self.forget_waiting(&key);
            if pod.ended {
                self.free(&key);
            } else {
                self.cluster.place(pod, &node);
            }
        } else if pod.waiting {
            match self.assumed.get(&key) {
                // The API server has not seen the binding yet.
                Some(uid) if *uid == pod.uid => return,
                Some(_) => self.remove_pod(&key),
                None => {}
            }
            if self.waiting.get(&key) != Some(&pod) {
                self.waiting.insert(key.clone(), pod);
                self.activate(&key);
            }
        } else {
            self.remove_pod(&key);
        }
    }

    pub(crate) fn remove_pod(&mut self, key: &PodKey) {
        self.forget_waiting(key);
        self.free(key);
    }

    /// Every Pod that is known here, for the comparison with a new list.
    pub(crate) fn pods(&self) -> HashSet<PodKey> {
        let mut pods: HashSet<_> = self.cluster.placed_pods().into_iter().collect();
        pods.extend(self.waiting.keys().cloned());
        pods
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// When [`Self::wake`] has something to do.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Makes those active whose time to be tried again has come.
    pub(crate) fn wake(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.later.pop_first() {
                self.activate(&key);
            }
        }
    }

    /// Decides on the next Pods until there is something to do.
    pub(crate) fn next(&mut self) -> Option<Work> {
        while let Some((_, _, key)) = self.active.pop_first() {
            let Some(pod) = self.waiting.get(&key).cloned() else {
                continue;
            };
            match decide(&pod, &self.cluster).map(str::to_owned) {
                Ok(node) => {
                    self.assumed.insert(key, pod.uid.clone());
                    self.cluster.place(pod.clone(), &node);
                    return Some(Work::Bind { pod, node });
                }
                Err(why) => {
                    self.parked.insert(key.clone());
                    if self.reported.insert(key, why.clone()).as_ref() != Some(&why) {
                        return Some(Work::Report { pod, why });
                    }
                }
            }
        }
        None
    }

    /// The API server refused the binding, or could not be asked.
    pub(crate) fn bind_failed(&mut self, pod: &PodFacts, now: Instant) {
        let key = pod.key();
        if self.assumed.get(&key) != Some(&pod.uid) {
            // Its real place, or its end, was seen meanwhile.
            return;
        }
        self.assumed.remove(&key);
        self.free(&key);
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = LAST_RETRY.min(FIRST_RETRY * (1 << (*failures).min(8)));
        *failures += 1;
        self.later.insert((now + delay, key));
    }

    fn activate(&mut self, key: &PodKey) {
        if let Some(pod) = self.waiting.get(key)
            && !self.assumed.contains_key(key)
        {
            self.parked.remove(key);
            self.active
                .insert((Reverse(pod.priority), pod.created, key.clone()));
        }
    }

    fn unpark(&mut self) {
        for key in std::mem::take(&mut self.parked) {
            self.activate(&key);
        }
    }

    fn forget_waiting(&mut self, key: &PodKey) {
        if let Some(pod) = self.waiting.remove(key) {
            self.active
                .remove(&(Reverse(pod.priority), pod.created, key.clone()));
        }
        self.parked.remove(key);
        self.reported.remove(key);
        self.assumed.remove(key);
        self.failures.remove(key);
    }

    /// Takes the Pod from its Node; whoever fits nowhere may fit there now.
    fn free(&mut self, key: &PodKey) {
        if self.cluster.remove_pod(key) {
            self.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, cpu: &str) -> NodeFacts {
        let node = json!({"metadata": {"name": name}, "status": {
            "allocatable": {"cpu": cpu, "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        NodeFacts::of(&serde_json::from_value(node).unwrap())
    }

    fn pod(name: &str, priority: i32, node: Option<&str>) -> PodFacts {
        let pod = json!({
            "metadata": {"name": name, "namespace": "d", "uid": format!("uid of {name}")},
            "spec": {
                "priority": priority,
                "nodeName": node,
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}],
            },
        });
        PodFacts::of(&serde_json::from_value(pod).unwrap())
    }

    fn shown(work: Option<Work>) -> String {
        match work {
            None => "nothing".into(),
            Some(Work::Bind { pod, node }) => format!("{} to {node}", pod.name),
            Some(Work::Report { pod, why }) => format!("{}: {}", pod.name, why.0),
        }
    }

    #[test]
    fn the_important_go_first_and_the_rest_hear_once_why_they_wait() {
        let mut queue = Queue::default();
        queue.set_node(node("n", "1"));
        queue.set_pod(pod("small", 0, None));
        queue.set_pod(pod("vital", 9, None));
        assert_eq!(shown(queue.next()), "vital to n");
        let refusal = "small: 0/1 nodes are available: 1 Insufficient cpu.";
        assert_eq!(shown(queue.next()), refusal);
        assert_eq!(shown(queue.next()), "nothing");

        queue.set_pod(pod("small", 0, None));
        queue.set_node(node("n", "1"));
        assert!(queue.is_idle(), "nothing changed");
        queue.set_node(node("n", "1500m"));
        assert_eq!(
            shown(queue.next()),
            "nothing",
            "tried again, the reason is the same"
        );
        queue.remove_pod(&("d".into(), "vital".into()));
        assert_eq!(shown(queue.next()), "small to n");
    }

    #[test]
    fn an_assumed_pod_keeps_its_place_until_it_is_seen_there() {
        let mut queue = Queue::default();
        queue.set_node(node("n", "1"));
        queue.set_pod(pod("a", 0, None));
        assert_eq!(shown(queue.next()), "a to n");
        queue.set_pod(pod("a", 1, None));
        assert_eq!(
            shown(queue.next()),
            "nothing",
            "a late event of the unbound Pod"
        );
        queue.set_pod(pod("a", 0, Some("n")));
        queue.bind_failed(&pod("a", 0, None), Instant::now());
        queue.set_pod(pod("b", 0, None));
        assert!(
            shown(queue.next()).starts_with("b: 0/1"),
            "a failure that came late frees nothing"
        );
    }

    #[test]
    fn a_failed_binding_frees_the_place_and_is_tried_again_later() {
        let mut queue = Queue::default();
        queue.set_node(node("n", "1"));
        queue.set_pod(pod("a", 0, None));
        let now = Instant::now();
        for delay in [1, 2, 4, 8, 10, 10] {
            assert_eq!(shown(queue.next()), "a to n");
            queue.bind_failed(&pod("a", 0, None), now);
            assert_eq!(shown(queue.next()), "nothing");
            assert_eq!(queue.next_wake(), Some(now + Duration::from_secs(delay)));
            queue.wake(now + Duration::from_secs(delay));
        }
        queue.set_pod(pod("b", 5, None));
        assert_eq!(shown(queue.next()), "b to n", "the place was free");
    }

    #[test]
    fn a_pod_that_was_made_anew_under_its_name_is_a_new_pod() {
        let mut queue = Queue::default();
        queue.set_node(node("n", "1"));
        queue.set_pod(pod("a", 0, None));
        assert_eq!(shown(queue.next()), "a to n");
        let mut anew = pod("a", 0, None);
        anew.uid = "another".into();
        queue.set_pod(anew);
        assert_eq!(shown(queue.next()), "a to n");
        assert_eq!(queue.pods().len(), 1);
    }

    #[test]
    fn pods_that_ended_hold_nothing() {
        let mut queue = Queue::default();
        queue.set_node(node("n", "1"));
        queue.set_pod(pod("a", 0, Some("n")));
        queue.set_pod(pod("b", 0, None));
        assert!(shown(queue.next()).starts_with("b: 0/1"));
        let mut ended = pod("a", 0, Some("n"));
        ended.ended = true;
        queue.set_pod(ended);
        assert_eq!(shown(queue.next()), "b to n");
    }
}
