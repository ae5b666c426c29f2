//! How many pods each ReplicaSet of a Deployment should have next. Pure.
//!
//! A rollout goes in steps, each of which keeps two promises: at most `maxSurge` pods more than asked for, and at most
//! `maxUnavailable` fewer that are available (<https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>).

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;

use super::history::DESIRED;
use crate::workload::share;

/// What a Deployment allows while it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub replicas: i32,
    pub max_surge: i32,
    pub max_unavailable: i32,
    /// All old pods go before a new one comes.
    pub recreate: bool,
}

/// A ReplicaSet as a rollout sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// Its place in the list that it came from.
    pub index: usize,
    /// The pods that it asks for, has, and has available.
    pub wanted: i32,
    pub has: i32,
    pub available: i32,
    created: Option<String>,
}

/// A ReplicaSet, by its place in the list, and its new size.
pub(super) type Scale = (usize, i32);

impl Limits {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.clone();
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.unwrap_or_default();
        if strategy.type_.as_deref() == Some("Recreate") {
            return Self {
                replicas,
                max_surge: 0,
                max_unavailable: replicas,
                recreate: true,
            };
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let max_surge = share(rolling.max_surge.as_ref(), "25%", replicas, true);
        let mut max_unavailable = share(rolling.max_unavailable.as_ref(), "25%", replicas, false);
        if max_surge == 0 && max_unavailable == 0 {
            // By percentages of few pods both may come to nothing; then a rollout could not move.
            max_unavailable = 1;
        }
        Self {
            replicas,
            max_surge,
            max_unavailable: max_unavailable.min(replicas),
            recreate: false,
        }
    }
}

impl Set {
    pub fn of(index: usize, set: &ReplicaSet) -> Self {
        let status = set.status.as_ref();
        Self {
            index,
            wanted: set.spec.replicas.unwrap_or(1),
            has: status.map_or(0, |status| status.replicas),
            available: status
                .and_then(|status| status.available_replicas)
                .unwrap_or(0),
            created: set.creation_timestamp().map(|time| time.0.to_string()),
        }
    }
}

/// The next step from `old` to `new`. `old_pods_left`: pods of old sets that have not gone yet.
pub(super) fn step(limits: Limits, new: &Set, old: &[Set], old_pods_left: bool) -> Vec<Scale> {
    if limits.recreate {
        let down = old.iter().filter(|set| set.wanted > 0);
        let down: Vec<Scale> = down.map(|set| (set.index, 0)).collect();
        let up = down.is_empty() && !old_pods_left && new.wanted != limits.replicas;
        return if up {
            vec![(new.index, limits.replicas)]
        } else {
            down
        };
    }
    // One at a time: the next step sees what this one has done.
    if let Some(up) = grow(limits, new, old) {
        return vec![up];
    }
    shrink(limits, new, old)
}

fn grow(limits: Limits, new: &Set, old: &[Set]) -> Option<Scale> {
    if new.wanted > limits.replicas {
        return Some((new.index, limits.replicas));
    }
    let total: i32 = new.wanted + old.iter().map(|set| set.wanted).sum::<i32>();
    let room = limits.replicas + limits.max_surge - total;
    let more = room.min(limits.replicas - new.wanted);
    (more > 0).then(|| (new.index, new.wanted + more))
}

/// First the pods of old sets that serve nobody, then as many that do as may be missing.
fn shrink(limits: Limits, new: &Set, old: &[Set]) -> Vec<Scale> {
    let mut old: Vec<Set> = old.iter().filter(|set| set.wanted > 0).cloned().collect();
    old.sort_by(|a, b| a.created.cmp(&b.created));
    let total: i32 = new.wanted + old.iter().map(|set| set.wanted).sum::<i32>();
    let least = limits.replicas - limits.max_unavailable;
    // Of the new set's pods those that are not available may still come: they are not given up.
    let mut may_go = total - least - (new.wanted - new.available).max(0);
    let sizes: Vec<i32> = old.iter().map(|set| set.wanted).collect();
    for set in &mut old {
        let broken = (set.wanted - set.available).max(0).min(may_go.max(0));
        set.wanted -= broken;
        may_go -= broken;
    }
    let available: i32 = new.available
        + old
            .iter()
            .map(|set| set.available.min(set.wanted))
            .sum::<i32>();
    let mut may_go = available - least;
    for set in &mut old {
        let fewer = set.wanted.min(may_go.max(0));
        set.wanted -= fewer;
        may_go -= fewer;
    }
    let changed = old
        .iter()
        .zip(sizes)
        .filter(|(set, size)| set.wanted != *size);
    changed.map(|(set, _)| (set.index, set.wanted)).collect()
}

/// The size of the Deployment has changed since a set was last scaled.
pub(super) fn resized(limits: Limits, sets: &[ReplicaSet]) -> bool {
    let active = sets.iter().filter(|set| Set::of(0, set).wanted > 0);
    let known = active.filter_map(|set| set.annotations().get(DESIRED)?.parse::<i32>().ok());
    known.into_iter().any(|known| known != limits.replicas)
}

/// What each set gets when the Deployment's size changes: all of it when one set is active, else a share of the
/// difference as large as the set is.
pub(super) fn resize(limits: Limits, new: &Set, old: &[Set]) -> Vec<Scale> {
    let mut active: Vec<&Set> = old
        .iter()
        .chain([new])
        .filter(|set| set.wanted > 0)
        .collect();
    if active.is_empty() {
        return vec![(new.index, limits.replicas)];
    }
    if let [only] = active.as_slice() {
        return vec![(only.index, limits.replicas)];
    }
    // The largest first; of the same size, growing favours the newest and shrinking the oldest.
    let total: i32 = active.iter().map(|set| set.wanted).sum();
    let goal = if limits.replicas > 0 {
        limits.replicas + limits.max_surge
    } else {
        0
    };
    let growing = goal > total;
    active.sort_by(|a, b| {
        let age = if growing {
            b.created.cmp(&a.created)
        } else {
            a.created.cmp(&b.created)
        };
        b.wanted.cmp(&a.wanted).then(age)
    });
    let mut left = goal - total;
    let mut scales: Vec<Scale> = Vec::new();
    for set in &active {
        let share = i64::from(set.wanted) * i64::from(goal) / i64::from(total.max(1));
        let share = i32::try_from(share).unwrap_or(set.wanted) - set.wanted;
        let share = if growing {
            share.clamp(0, left)
        } else {
            share.clamp(left, 0)
        };
        scales.push((set.index, set.wanted + share));
        left -= share;
    }
    // What rounding has left goes to the first.
    if let Some(first) = scales.first_mut() {
        first.1 = (first.1 + left).max(0);
    }
    scales
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn limits(replicas: i32, strategy: Value) -> Limits {
        let deployment = json!({"spec": {"replicas": replicas, "strategy": strategy, "selector": {}, "template": {}}});
        Limits::of(&serde_json::from_value(deployment).unwrap())
    }

    fn rolling(replicas: i32, surge: Value, unavailable: Value) -> Limits {
        limits(
            replicas,
            json!({"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}),
        )
    }

    fn set(index: usize, wanted: i32, available: i32) -> Set {
        Set {
            index,
            wanted,
            has: wanted,
            available,
            created: Some(index.to_string()),
        }
    }

    #[test]
    fn percentages_round_in_favour_of_availability() {
        let found = limits(10, json!({}));
        assert_eq!((found.max_surge, found.max_unavailable), (3, 2));
        let found = rolling(1, json!("0%"), json!("25%"));
        assert_eq!((found.max_surge, found.max_unavailable), (0, 1));
        let found = rolling(2, json!(1), json!(5));
        assert_eq!((found.max_surge, found.max_unavailable), (1, 2));
    }

    /// Plays a rollout whose new pods become available at once; checks both promises at each step.
    #[test]
    fn a_rollout_ends_and_keeps_its_promises_all_the_way() {
        for (surge, unavailable) in [(1, 0), (0, 1), (2, 1), (10, 10), (0, 4)] {
            let limits = rolling(4, json!(surge), json!(unavailable));
            let (mut new, mut old) = (set(0, 0, 0), [set(1, 3, 3), set(2, 1, 1)]);
            let mut steps = 0;
            loop {
                let scales = step(limits, &new, &old, false);
                if scales.is_empty() {
                    break;
                }
                for (index, size) in scales {
                    let set = if index == 0 {
                        &mut new
                    } else {
                        &mut old[index - 1]
                    };
                    assert_ne!(set.wanted, size);
                    set.wanted = size;
                    set.available = set.available.min(size);
                }
                let all = || old.iter().chain([&new]);
                let total: i32 = all().map(|set| set.wanted).sum();
                let available: i32 = all().map(|set| set.available).sum();
                assert!(total <= 4 + limits.max_surge, "{limits:?}: {total} pods");
                assert!(
                    available >= 4 - limits.max_unavailable,
                    "{limits:?}: {available} available"
                );
                new.available = new.wanted;
                steps += 1;
                assert!(steps < 50, "{limits:?}: no end");
            }
            assert_eq!(
                (new.wanted, old[0].wanted, old[1].wanted),
                (4, 0, 0),
                "{limits:?}"
            );
        }
    }

    #[test]
    fn a_broken_new_version_stops_the_rollout_and_broken_old_pods_go_first() {
        let limits = rolling(4, json!(1), json!(1));
        // The new pods never become available: no more than one may be missing.
        let (new, old) = (set(0, 2, 0), [set(1, 3, 3)]);
        assert_eq!(step(limits, &new, &old, false), []);
        // An old version that never worked must not stand in the way of the new one.
        let (new, old) = (set(0, 1, 1), [set(1, 4, 0)]);
        assert_eq!(step(limits, &new, &old, false), [(1, 2)]);
    }

    #[test]
    fn recreate_waits_until_the_old_pods_are_gone() {
        let limits = limits(3, json!({"type": "Recreate"}));
        let new = set(0, 0, 0);
        assert_eq!(step(limits, &new, &[set(1, 3, 3)], true), [(1, 0)]);
        assert_eq!(step(limits, &new, &[set(1, 0, 0)], true), []);
        assert_eq!(step(limits, &new, &[set(1, 0, 0)], false), [(0, 3)]);
    }

    #[test]
    fn a_resize_in_a_rollout_is_shared_by_the_sets() {
        let limits = rolling(20, json!(0), json!(1));
        let scales = resize(limits, &set(0, 5, 5), &[set(1, 5, 5)]);
        assert_eq!(scales.iter().map(|(_, size)| size).sum::<i32>(), 20);
        assert!(scales.contains(&(0, 10)) && scales.contains(&(1, 10)));
        assert_eq!(resize(limits, &set(0, 0, 0), &[set(1, 5, 5)]), [(1, 20)]);
        let down = rolling(3, json!(0), json!(1));
        let scales = resize(down, &set(0, 5, 5), &[set(1, 4, 4)]);
        assert_eq!(scales.iter().map(|(_, size)| size).sum::<i32>(), 3);
        let none = rolling(0, json!(1), json!(1));
        let scales = resize(none, &set(0, 5, 5), &[set(1, 4, 4)]);
        assert!(scales.iter().all(|(_, size)| *size == 0));
    }
}
