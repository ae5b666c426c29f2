//! What one object takes: its amounts by the names that quotas know.

use serde_json::Value;

use crate::pods::{self, Side};
use crate::{Amounts, Quantity, amounts, items, text};

const CLASS: &str = ".storageclass.storage.k8s.io/";

/// Names that a quota knows from before there was `count/`.
const COUNTED: [&str; 4] = [
    "configmaps",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
];

/// A resource by its group (empty: core) and its plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    pub group: &'a str,
    pub plural: &'a str,
}

impl<'a> Resource<'a> {
    /// Which resource an amount is about, and whether it is told by the number of objects alone; `None` for a name that no
    /// quota knows.
    #[must_use]
    pub fn of_amount(name: &'a str) -> Option<Self> {
        let core = |plural| Some(Self { group: "", plural });
        if let Some(counted) = name.strip_prefix("count/") {
            let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
            return Some(Self { group, plural });
        }
        if COUNTED.contains(&name) {
            return core(name);
        }
        if name.starts_with("services") {
            return core("services").filter(|services| services.takes(name));
        }
        [core("persistentvolumeclaims"), core("pods")]
            .into_iter()
            .flatten()
            .find(|resource| resource.takes(name))
    }

    /// Whether objects of this resource take of the amount called `name`.
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        if let Some(counted) = name.strip_prefix("count/") {
            let (plural, group) = counted.split_once('.').unwrap_or((counted, ""));
            return (group, plural) == (self.group, self.plural);
        }
        if !self.group.is_empty() {
            return false;
        }
        match self.plural {
            "pods" => is_of_pods(name),
            "services" => {
                matches!(
                    name,
                    "services" | "services.nodeports" | "services.loadbalancers"
                )
            }
            "persistentvolumeclaims" => is_of_claims(name),
            plural => COUNTED.contains(&plural) && name == plural,
        }
    }

    /// What `object` takes. `now`: seconds since 1970, after which a pod counts no more that should have gone.
    #[must_use]
    pub fn usage(&self, object: &Value, now: i64) -> Amounts {
        let counted = match self.group {
            "" => format!("count/{}", self.plural),
            group => format!("count/{}.{group}", self.plural),
        };
        let mut all = Amounts::from([(counted, Quantity::count(1))]);
        if !self.group.is_empty() {
            return all;
        }
        match self.plural {
            "pods" if counts(object, now) => all.extend(of_pod(object)),
            "services" => all.extend(of_service(object)),
            "persistentvolumeclaims" => all.extend(of_claim(object)),
            plural if COUNTED.contains(&plural) => {
                all.insert(plural.to_owned(), Quantity::count(1));
            }
            _ => {}
        }
        all
    }
}

fn is_of_pods(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "pods",
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
    ];
    NAMES.contains(&name)
        || ["hugepages-", "requests.hugepages-"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        || name.strip_prefix("requests.").is_some_and(is_extended)
}

/// Whether somebody else than Kubernetes counts it (`nvidia.com/gpu`).
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.contains(CLASS)
}

fn is_of_claims(name: &str) -> bool {
    let word = name.split_once(CLASS).map_or(name, |(_, word)| word);
    matches!(word, "persistentvolumeclaims" | "requests.storage")
}

/// Whether a pod still takes anything but its place in the store.
fn counts(pod: &Value, now: i64) -> bool {
    if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
        return false;
    }
    let deleted = text(pod, "/metadata/deletionTimestamp");
    // The timestamp says when the pod is to be gone: the grace is in it.
    deleted.is_empty() || seconds(deleted).is_none_or(|gone| now <= gone)
}

/// Seconds since 1970 of an RFC 3339 time in UTC, as the API server writes it.
fn seconds(time: &str) -> Option<i64> {
    let number = |from: usize, to: usize| time.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // Days of the civil calendar, with years that begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn of_pod(pod: &Value) -> Amounts {
    let requests = pods::whole(pod, Side::Requests);
    let limits = pods::whole(pod, Side::Limits);
    let mut all = named(&requests, &limits);
    all.insert("pods".to_owned(), Quantity::count(1));
    all
}

/// Requests and limits under the names that quotas know.
pub(crate) fn named(requests: &Amounts, limits: &Amounts) -> Amounts {
    const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
    let mut all = Amounts::new();
    for (name, amount) in requests {
        let compute = COMPUTE.contains(&name.as_str()) || name.starts_with("hugepages-");
        if compute {
            all.insert(name.clone(), *amount);
        }
        if compute || is_extended(name) {
            all.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits {
        if COMPUTE.contains(&name.as_str()) {
            all.insert(format!("limits.{name}"), *amount);
        }
    }
    all
}

fn of_service(service: &Value) -> Amounts {
    let ports = items(service, "/spec/ports");
    let kind = text(service, "/spec/type");
    let balanced = kind == "LoadBalancer";
    let allocated =
        service.pointer("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false));
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocated => ports.len(),
        "LoadBalancer" => {
            let given = ports.iter().filter_map(|port| port["nodePort"].as_i64());
            given.filter(|port| *port > 0).count()
        }
        _ => 0,
    };
    let of = |number: usize| Quantity::count(u32::try_from(number).unwrap_or(u32::MAX));
    Amounts::from([
        ("services".to_owned(), of(1)),
        ("services.nodeports".to_owned(), of(node_ports)),
        (
            "services.loadbalancers".to_owned(),
            of(usize::from(balanced)),
        ),
    ])
}

fn of_claim(claim: &Value) -> Amounts {
    let one = Quantity::count(1);
    let mut all = Amounts::from([("persistentvolumeclaims".to_owned(), one)]);
    let class = text(claim, "/spec/storageClassName");
    if !class.is_empty() {
        all.insert(format!("{class}{CLASS}persistentvolumeclaims"), one);
    }
    let requests = amounts(claim.pointer("/spec/resources/requests"));
    if let Some(storage) = requests.get("storage") {
        all.insert("requests.storage".to_owned(), *storage);
        if !class.is_empty() {
            all.insert(format!("{class}{CLASS}requests.storage"), *storage);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(group: &str, plural: &str, object: &Value) -> String {
        let all = Resource { group, plural }.usage(object, 1_000_000_000);
        let all = all.iter().filter(|(_, amount)| !amount.is_zero());
        let all: Vec<String> = all
            .map(|(name, amount)| format!("{name}={amount}"))
            .collect();
        all.join(",")
    }

    #[test]
    fn pods_take_what_they_ask_for_until_they_are_over() {
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"resources": {
            "requests": {"cpu": "100m", "nvidia.com/gpu": "2"}, "limits": {"memory": "1Gi"}}}]}});
        assert_eq!(
            shown("", "pods", &pod),
            "count/pods=1,cpu=100m,limits.memory=1Gi,pods=1,requests.cpu=100m,requests.nvidia.com/gpu=2"
        );
        // 2001-09-09T01:46:40Z is second 1,000,000,000.
        pod["metadata"]["deletionTimestamp"] = json!("2001-09-09T01:46:40Z");
        assert!(shown("", "pods", &pod).contains(",pods=1"));
        pod["metadata"]["deletionTimestamp"] = json!("2001-09-09T01:46:39Z");
        assert_eq!(shown("", "pods", &pod), "count/pods=1");
        pod = json!({"status": {"phase": "Succeeded"}});
        assert_eq!(shown("", "pods", &pod), "count/pods=1");
    }

    #[test]
    fn services_and_claims_take_what_they_are() {
        let mut service =
            json!({"spec": {"type": "LoadBalancer", "ports": [{}, {"nodePort": 30000}]}});
        let all = "count/services=1,services=1,services.loadbalancers=1";
        assert_eq!(
            shown("", "services", &service),
            format!("{all},services.nodeports=2")
        );
        service["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        assert_eq!(
            shown("", "services", &service),
            format!("{all},services.nodeports=1")
        );
        let claim = json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            shown("", "persistentvolumeclaims", &claim),
            "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi"
        );
        assert_eq!(
            shown("apps", "deployments", &json!({})),
            "count/deployments.apps=1"
        );
    }

    #[test]
    fn every_amount_is_about_one_resource() {
        for (name, group, plural) in [
            ("pods", "", "pods"),
            ("requests.nvidia.com/gpu", "", "pods"),
            ("limits.memory", "", "pods"),
            ("requests.storage", "", "persistentvolumeclaims"),
            (
                "a.storageclass.storage.k8s.io/requests.storage",
                "",
                "persistentvolumeclaims",
            ),
            ("services.nodeports", "", "services"),
            ("configmaps", "", "configmaps"),
            ("count/widgets.example.com", "example.com", "widgets"),
        ] {
            assert_eq!(
                Resource::of_amount(name),
                Some(Resource { group, plural }),
                "{name}"
            );
        }
        assert_eq!(Resource::of_amount("requests.kubernetes.io/x"), None);
        assert_eq!(Resource::of_amount("deployments"), None);
    }
}
