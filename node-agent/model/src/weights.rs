//! Shares of a Service's connections by the names of its pods: how a canary gets five percent.

use crate::PodShare;

/// Turns that the weights of one service may add up to.
const MOST: u128 = 1024;

/// A weight for each endpoint, of which the name of its Pod is known or not. The pods of a share have it together, each an equal part; pods that no share names have
/// together what is left of a hundred. A weight of 0: no new connection, as long as others take them.
pub(crate) fn weights(pods: &[Option<&str>], shares: &[PodShare]) -> Vec<u32> {
    let groups: Vec<Option<usize>> = pods.iter().map(|pod| group(*pod, shares)).collect();
    let named: u128 = shares.iter().map(|share| u128::from(share.percent)).sum();
    let percent = |group: Option<usize>| match group {
        Some(index) => u128::from(shares[index].percent),
        None => 100_u128.saturating_sub(named),
    };
    let size = |group| groups.iter().filter(|other| **other == group).count() as u128;
    let mut sizes = (0..shares.len())
        .map(Some)
        .chain([None])
        .map(size)
        .filter(|size| *size > 0);
    // Beyond all measure the parts are rounded.
    let multiple = sizes.try_fold(1, lcm).unwrap_or(1 << 64);
    let exact: Vec<u128> = groups
        .iter()
        .map(|group| percent(*group) * (multiple / size(*group)))
        .collect();
    if exact.iter().all(|weight| *weight == 0) {
        return vec![1; pods.len()];
    }
    scaled(&exact)
}

/// The share whose name is the longest that the pod's name starts with, up to a hyphen: a Deployment's name names its
/// pods.
fn group(pod: Option<&str>, shares: &[PodShare]) -> Option<usize> {
    let pod = pod?;
    let names = |share: &PodShare| {
        let rest = pod.strip_prefix(share.pods.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let named = shares.iter().enumerate().filter(|(_, share)| names(share));
    named
        .max_by_key(|(_, share)| share.pods.len())
        .map(|(index, _)| index)
}

/// In lowest terms; rounded where those are too many, but nobody who has a share loses it.
fn scaled(exact: &[u128]) -> Vec<u32> {
    let divisor = exact.iter().fold(0, |all, weight| gcd(all, *weight)).max(1);
    let sum: u128 = exact.iter().map(|weight| weight / divisor).sum();
    let scale = |weight: &u128| match weight / divisor {
        0 => 0,
        weight if sum <= MOST => weight,
        weight => ((weight * MOST + sum / 2) / sum).max(1),
    };
    exact
        .iter()
        .map(scale)
        .map(|weight| u32::try_from(weight).unwrap_or(u32::MAX))
        .collect()
}

fn lcm(a: u128, b: u128) -> Option<u128> {
    (a / gcd(a, b))
        .checked_mul(b)
        .filter(|multiple| *multiple < 1 << 64)
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pods: &[&str], shares: &[(&str, u8)]) -> Vec<u32> {
        let shares: Vec<PodShare> = shares
            .iter()
            .map(|(pods, percent)| PodShare {
                pods: (*pods).to_owned(),
                percent: *percent,
            })
            .collect();
        let pods: Vec<_> = pods.iter().map(|pod| Some(*pod)).collect();
        weights(&pods, &shares)
    }

    #[test]
    fn a_canary_gets_its_percent_however_many_pods_there_are() {
        assert_eq!(
            of(&["web-1", "web-canary-1"], &[("web-canary", 5)]),
            [19, 1]
        );
        // 95 percent by three pods, 5 by two.
        let weights = of(
            &["web-1", "web-2", "web-3", "web-canary-1", "web-canary-2"],
            &[("web-canary", 5)],
        );
        assert_eq!(weights, [38, 38, 38, 3, 3]);
        assert_eq!(
            weights[..3].iter().sum::<u32>(),
            weights[3..].iter().sum::<u32>() * 19
        );
    }

    #[test]
    fn the_longest_name_counts_and_only_up_to_a_hyphen() {
        let shares = [("web", 90), ("web-canary", 10)];
        assert_eq!(of(&["web-1", "web-canary-1"], &shares), [9, 1]);
        // No share is left for a pod that nobody names.
        assert_eq!(
            of(&["web-1", "webcanary-1", "web-canary-1"], &shares),
            [9, 0, 1]
        );
    }

    #[test]
    fn a_share_of_pods_that_are_not_there_goes_to_the_others() {
        assert_eq!(of(&["web-1", "web-2"], &[("web-canary", 5)]), [1, 1]);
        assert_eq!(of(&["web-canary-1"], &[("web-canary", 0)]), [1]);
        assert_eq!(of(&[], &[("web-canary", 5)]), Vec::<u32>::new());
    }

    #[test]
    fn many_pods_get_rounded_shares_and_no_one_loses_his() {
        let pods: Vec<String> = (0..97)
            .map(|n| format!("web-{n}"))
            .chain((0..13).map(|n| format!("new-{n}")))
            .collect();
        let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
        let weights = of(&pods, &[("new", 5)]);
        let sum: u32 = weights.iter().sum();
        let canary: u32 = weights[97..].iter().sum();
        assert!(sum <= 1200, "{sum}");
        assert!(weights.iter().all(|weight| *weight > 0));
        let percent = f64::from(canary) * 100.0 / f64::from(sum);
        assert!((4.0..6.0).contains(&percent), "{percent}");
    }
}
