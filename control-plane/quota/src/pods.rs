//! What a pod asks for as a whole.
//!
//! Init containers run one after the other and before the rest, so the largest counts; those that are restarted always
//! run beside all that follow (<https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers>).

use serde_json::Value;

use crate::{Amounts, add, amounts, items, raise, text};

/// `requests` or `limits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Requests,
    Limits,
}

impl Side {
    const fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// What a container or a pod says of itself.
pub fn own(of: &Value, side: Side) -> Amounts {
    amounts(of.get("resources").and_then(|all| all.get(side.field())))
}

/// Containers and init containers, in this order.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let spec = &pod["spec"];
    items(spec, "/containers")
        .iter()
        .chain(items(spec, "/initContainers"))
}

/// What the whole pod asks for.
pub fn whole(pod: &Value, side: Side) -> Amounts {
    let spec = &pod["spec"];
    let mut sum = Amounts::new();
    for container in items(spec, "/containers") {
        add(&mut sum, &own(container, side));
    }
    let (mut beside, mut first) = (Amounts::new(), Amounts::new());
    for container in items(spec, "/initContainers") {
        let mut now = own(container, side);
        if text(container, "/restartPolicy") == "Always" {
            add(&mut sum, &now);
            add(&mut beside, &now);
            now.clone_from(&beside);
        } else {
            add(&mut now, &beside);
        }
        raise(&mut first, &now);
    }
    raise(&mut sum, &first);
    // What is said of the pod counts for its containers.
    for (name, amount) in own(spec, side) {
        sum.insert(name, amount);
    }
    let mut overhead = amounts(spec.get("overhead"));
    if side == Side::Limits {
        overhead.retain(|name, _| sum.contains_key(name));
    }
    add(&mut sum, &overhead);
    sum
}

/// Whether the pod asks for no CPU and no memory at all: quality of service BestEffort.
pub fn best_effort(pod: &Value) -> bool {
    let asks = |of: &Value| {
        [Side::Requests, Side::Limits].into_iter().any(|side| {
            let all = own(of, side);
            let mut named = all
                .iter()
                .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory"));
            named.any(|(_, amount)| !amount.is_zero())
        })
    };
    !containers(pod).any(asks) && !asks(&pod["spec"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_count_where_they_ask_for_more() {
        let of = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod = json!({"spec": {
            "containers": [{"resources": of("100m")}, {"resources": of("200m")}],
            "initContainers": [
                {"resources": of("50m"), "restartPolicy": "Always"},
                {"resources": of("500m")},
            ],
            "overhead": {"cpu": "10m", "memory": "1Mi"},
        }});
        let requests = whole(&pod, Side::Requests);
        // 500m and the sidecar's 50m before the rest, then the overhead.
        assert_eq!(requests["cpu"].to_string(), "560m");
        assert_eq!(requests["memory"].to_string(), "1Mi");
        assert!(whole(&pod, Side::Limits).is_empty());
        assert!(!best_effort(&pod));
        assert!(best_effort(
            &json!({"spec": {"containers": [{"resources": of("0")}]}})
        ));
    }
}
