//! The columns of rules: access, admission, quotas, fairness, priorities, ways in.

use serde_json::{Value, json};

use super::{AGE, NAME, Printer, age, column, count, name, or, or_none, wide};
use crate::json::Json;
use crate::labels::text;

/// Name and the time of creation.
pub const CREATED: Printer = super::PLAIN;

pub const ROLE_BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("Role", "What is granted."),
        AGE,
        wide("Users", "The users to whom it is granted."),
        wide("Groups", "The groups to which it is granted."),
        wide(
            "ServiceAccounts",
            "The service accounts to which it is granted.",
        ),
    ],
    row: |binding, now| {
        let subjects = |kind: &str| {
            let of_kind = binding.items("/subjects").iter();
            let names: Vec<String> = of_kind
                .filter(|s| s.text("/kind") == kind)
                .map(|s| match (kind, s.text("/namespace")) {
                    ("ServiceAccount", namespace) => format!("{namespace}/{}", s.text("/name")),
                    _ => s.text("/name").to_owned(),
                })
                .collect();
            json!(names.join(", "))
        };
        let role = &binding["roleRef"];
        vec![
            name(binding),
            json!(format!("{}/{}", role.text("/kind"), role.text("/name"))),
            age(binding, now),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    },
    ..super::PLAIN
};

pub const RESOURCE_QUOTA: Printer = Printer {
    columns: &[
        NAME,
        column("Request", "What is requested, of how much."),
        column("Limit", "What is limited, of how much."),
        AGE,
    ],
    row: |quota, now| {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, hard) in quota.object("/status/hard").into_iter().flatten() {
            let used = quota.object("/status/used").and_then(|u| u.get(resource));
            let used = used.and_then(Value::as_str).unwrap_or("0");
            let line = format!("{resource}: {used}/{}", hard.as_str().unwrap_or_default());
            if resource.starts_with("limits") {
                limits.push(line);
            } else {
                requests.push(line);
            }
        }
        vec![
            name(quota),
            json!(requests.join(", ")),
            json!(limits.join(", ")),
            age(quota, now),
        ]
    },
    ..super::PLAIN
};

pub const PRIORITY_CLASS: Printer = Printer {
    columns: &[
        NAME,
        count("Value", "The priority of its pods."),
        column("Global-Default", "Whether pods without a class have it."),
        AGE,
        column("PreemptionPolicy", "Whether its pods push out others."),
    ],
    row: |class, now| {
        vec![
            name(class),
            class["value"].clone(),
            json!(class.flag("/globalDefault")),
            age(class, now),
            json!(class.text("/preemptionPolicy")),
        ]
    },
    ..super::PLAIN
};

pub const RUNTIME_CLASS: Printer = Printer {
    columns: &[NAME, column("Handler", "The runtime's configuration."), AGE],
    row: |class, now| vec![name(class), class["handler"].clone(), age(class, now)],
    ..super::PLAIN
};

pub const FLOW_SCHEMA: Printer = Printer {
    columns: &[
        NAME,
        column("PriorityLevel", "Where its requests are queued."),
        count("MatchingPrecedence", "Which schema comes first."),
        column("DistinguisherMethod", "What tells flows apart."),
        AGE,
        column("MissingPL", "Whether the level is missing."),
    ],
    row: |schema, now| {
        let missing = schema.items("/status/conditions").iter();
        let missing = missing.clone().find(|c| c.text("/type") == "Dangling");
        vec![
            name(schema),
            json!(schema.text("/spec/priorityLevelConfiguration/name")),
            schema["spec"]["matchingPrecedence"].clone(),
            or_none(schema.text("/spec/distinguisherMethod/type")),
            age(schema, now),
            or(missing.map_or("", |c| c.text("/status")), "?"),
        ]
    },
    ..super::PLAIN
};

pub const PRIORITY_LEVEL: Printer = Printer {
    columns: &[
        NAME,
        column("Type", "Limited or Exempt."),
        column("NominalConcurrencyShares", "Its share of the seats."),
        column("Queues", "The number of queues."),
        column("HandSize", "From how many queues a flow chooses."),
        column("QueueLengthLimit", "How many requests a queue holds."),
        AGE,
    ],
    row: |level, now| {
        let number = |pointer: &str| {
            let number = level.integer(pointer);
            json!(number.map_or("<none>".to_owned(), |n| n.to_string()))
        };
        let queuing = "/spec/limited/limitResponse/queuing";
        vec![
            name(level),
            json!(level.text("/spec/type")),
            number("/spec/limited/nominalConcurrencyShares"),
            number(&format!("{queuing}/queues")),
            number(&format!("{queuing}/handSize")),
            number(&format!("{queuing}/queueLengthLimit")),
            age(level, now),
        ]
    },
    ..super::PLAIN
};

pub const WEBHOOKS: Printer = Printer {
    columns: &[NAME, count("Webhooks", "The number of its webhooks."), AGE],
    row: |configuration, now| {
        let hooks = configuration.items("/webhooks").len();
        vec![name(configuration), json!(hooks), age(configuration, now)]
    },
    ..super::PLAIN
};

pub const VALIDATING_POLICY: Printer = Printer {
    columns: &[
        NAME,
        count("Validations", "The number of its validations."),
        column("ParamKind", "The kind of its parameters."),
        AGE,
    ],
    row: |policy, now| {
        let rules = policy.items("/spec/validations").len();
        vec![
            name(policy),
            json!(rules),
            parameters(policy),
            age(policy, now),
        ]
    },
    ..super::PLAIN
};

pub const MUTATING_POLICY: Printer = Printer {
    columns: &[
        NAME,
        count("Mutations", "The number of its mutations."),
        column("ParamKind", "The kind of its parameters."),
        AGE,
    ],
    row: |policy, now| {
        let rules = policy.items("/spec/mutations").len();
        vec![
            name(policy),
            json!(rules),
            parameters(policy),
            age(policy, now),
        ]
    },
    ..super::PLAIN
};

pub const POLICY_BINDING: Printer = Printer {
    columns: &[
        NAME,
        column("PolicyName", "The policy that it puts to work."),
        column("ParamRef", "The parameters that it gives."),
        AGE,
    ],
    row: |binding, now| {
        let reference = &binding["spec"]["paramRef"];
        let place = match reference.text("/namespace") {
            "" => "*",
            namespace => namespace,
        };
        let shown = match (reference.text("/name"), reference.has("/selector")) {
            ("", true) => format!("{place}/*"),
            ("", false) => "<unset>".to_owned(),
            (name, _) => format!("{place}/{name}"),
        };
        vec![
            name(binding),
            json!(binding.text("/spec/policyName")),
            json!(shown),
            age(binding, now),
        ]
    },
    ..super::PLAIN
};

pub const API_SERVICE: Printer = Printer {
    columns: &[
        NAME,
        column("Service", "Who answers."),
        column("Available", "Whether it answers."),
        AGE,
    ],
    row: |service, now| {
        let place = &service["spec"]["service"];
        let place = match place.text("/name") {
            "" => "Local".to_owned(),
            name => format!("{}/{name}", place.text("/namespace")),
        };
        let conditions = service.items("/status/conditions");
        let available = conditions.iter().find(|c| c.text("/type") == "Available");
        vec![
            name(service),
            json!(place),
            or(available.map_or("", |c| c.text("/status")), "Unknown"),
            age(service, now),
        ]
    },
    ..super::PLAIN
};

pub const INGRESS_CLASS: Printer = Printer {
    columns: &[
        NAME,
        column("Controller", "Who serves the class."),
        column("Parameters", "What its controller reads."),
        AGE,
    ],
    row: |class, now| {
        let parameters = &class["spec"]["parameters"];
        let shown = match (parameters.text("/kind"), parameters.text("/apiGroup")) {
            ("", _) => "<none>".to_owned(),
            (kind, "") => format!("{kind}/{}", parameters.text("/name")),
            (kind, group) => format!("{kind}.{group}/{}", parameters.text("/name")),
        };
        vec![
            name(class),
            json!(class.text("/spec/controller")),
            json!(shown),
            age(class, now),
        ]
    },
    ..super::PLAIN
};

pub const INGRESS: Printer = Printer {
    columns: &[
        NAME,
        column("Class", "Who serves it."),
        column("Hosts", "The names that it answers for."),
        column("Address", "Where it can be reached."),
        column("Ports", "The ports that it listens on."),
        AGE,
    ],
    row: |ingress, now| {
        let rules = ingress.items("/spec/rules");
        let hosts: Vec<&str> = rules
            .iter()
            .map(|r| r.text("/host"))
            .filter(|h| !h.is_empty())
            .collect();
        let hosts = match hosts.len() {
            0 => "*".to_owned(),
            n if n <= 3 => hosts.join(","),
            n => format!("{} + {} more...", hosts[..3].join(","), n - 3),
        };
        let places: Vec<&str> = ingress
            .items("/status/loadBalancer/ingress")
            .iter()
            .map(|i| match i.text("/ip") {
                "" => i.text("/hostname"),
                ip => ip,
            })
            .collect();
        let tls = !ingress.items("/spec/tls").is_empty();
        vec![
            name(ingress),
            or_none(ingress.text("/spec/ingressClassName")),
            json!(hosts),
            json!(places.join(",")),
            json!(if tls { "80, 443" } else { "80" }),
            age(ingress, now),
        ]
    },
    ..super::PLAIN
};

pub const NETWORK_POLICY: Printer = Printer {
    columns: &[
        NAME,
        column("Pod-Selector", "The pods that it is about."),
        AGE,
    ],
    row: |policy, now| {
        let pods = text(&policy["spec"]["podSelector"]);
        vec![name(policy), or_none(&pods), age(policy, now)]
    },
    ..super::PLAIN
};

pub const IP_ADDRESS: Printer = Printer {
    columns: &[NAME, column("ParentRef", "Whose address it is.")],
    row: |address, _| {
        let parent = &address["spec"]["parentRef"];
        let parts = ["group", "resource", "namespace", "name"].map(|f| parent[f].as_str());
        let parts: Vec<&str> = parts
            .into_iter()
            .flatten()
            .filter(|p| !p.is_empty())
            .collect();
        vec![name(address), or_none(&parts.join("/"))]
    },
    ..super::PLAIN
};

pub const SERVICE_CIDR: Printer = Printer {
    columns: &[NAME, column("CIDRs", "The ranges of addresses."), AGE],
    row: |range, now| {
        let cidrs = range.items("/spec/cidrs").iter();
        let cidrs: Vec<&str> = cidrs.filter_map(Value::as_str).collect();
        vec![name(range), json!(cidrs.join(",")), age(range, now)]
    },
    ..super::PLAIN
};

fn parameters(policy: &Value) -> Value {
    let kind = policy.text("/spec/paramKind/kind");
    let version = policy.text("/spec/paramKind/apiVersion");
    json!(if kind.is_empty() {
        "<unset>".to_owned()
    } else {
        format!("{version}/{kind}")
    })
}
