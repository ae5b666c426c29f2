//! FlowSchemas and PriorityLevelConfigurations, compiled: which level and which flow a request belongs to.
//!
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use control_plane_registry::{Kind, Object, Registry, kinds};
use http::HeaderValue;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::queues::{Limits, Queuing};
use crate::access::User;
use crate::attributes::Attributes;

/// Every FlowSchema in the order of precedence, and every level's limits.
#[derive(Debug)]
pub struct Rules {
    schemas: Vec<Arc<Schema>>,
    /// Without fairness: one for what reads and one for what writes.
    plain: Option<[Arc<Schema>; 2]>,
    pub limits: BTreeMap<Arc<str>, Limits>,
}

/// What a connection and a request say of a client that nobody has proved.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Origin<'a> {
    pub address: Option<IpAddr>,
    pub agent: &'a str,
}

/// One FlowSchema.
#[derive(Debug)]
pub struct Schema {
    pub name: Arc<str>,
    pub level: Arc<str>,
    /// Requests of an exempt level take no seat.
    pub exempt: bool,
    pub uid: HeaderValue,
    pub level_uid: HeaderValue,
    spec: FlowSchemaSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FlowSchemaSpec {
    priority_level_configuration: Named,
    matching_precedence: i64,
    distinguisher_method: Option<Typed>,
    rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Typed {
    r#type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<NonResourceRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    user: Named,
    group: Named,
    service_account: Named,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NonResourceRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PriorityLevelSpec {
    r#type: String,
    limited: Option<Limited>,
    exempt: Option<Limited>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limited {
    nominal_concurrency_shares: Option<u32>,
    lendable_percent: u32,
    borrowing_limit_percent: Option<u32>,
    limit_response: LimitResponse,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LimitResponse {
    r#type: String,
    queuing: QueuingSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct QueuingSpec {
    queues: usize,
    hand_size: usize,
    queue_length_limit: usize,
}

impl Default for QueuingSpec {
    /// Kubernetes' defaults.
    fn default() -> Self {
        Self {
            queues: 64,
            hand_size: 8,
            queue_length_limit: 50,
        }
    }
}

/// The kinds that rules are made of.
pub fn kinds_followed() -> [&'static Kind; 2] {
    let find = |plural| {
        kinds::find("flowcontrol.apiserver.k8s.io", "v1", plural)
            .expect("the table of kinds has the rows of flowcontrol.apiserver.k8s.io")
    };
    [find("flowschemas"), find("prioritylevelconfigurations")]
}

impl Rules {
    /// The rules that the objects of `registry` say, with `seats` to share out.
    pub fn compile(registry: &Registry, seats: u32) -> Self {
        let [schemas, levels] = kinds_followed();
        let levels = specs::<PriorityLevelSpec>(registry, levels);
        let limits = share_out(&levels, seats);
        let mut schemas: Vec<_> = specs::<FlowSchemaSpec>(registry, schemas)
            .into_iter()
            .filter_map(|(object, spec)| {
                let level = spec.priority_level_configuration.name.as_str();
                // A schema whose level is not there catches nothing, as if it were not there either.
                let (found, level) = levels.iter().find(|(o, _)| &*o.name == level)?;
                Some(Arc::new(Schema {
                    name: (*object.name).into(),
                    level: (*found.name).into(),
                    exempt: level.r#type == "Exempt",
                    uid: header(&object.uid),
                    level_uid: header(&found.uid),
                    spec,
                }))
            })
            .collect();
        schemas.sort_by(|a, b| {
            let precedence = a.spec.matching_precedence.cmp(&b.spec.matching_precedence);
            precedence.then_with(|| a.name.cmp(&b.name))
        });
        Self {
            schemas,
            plain: None,
            limits,
        }
    }

    /// Two limits and no queues, whatever the objects say.
    pub fn plain(reading: u32, writing: u32) -> Self {
        let schemas = ["readOnly", "mutating"].map(|name| {
            Arc::new(Schema {
                name: name.into(),
                level: name.into(),
                exempt: false,
                uid: HeaderValue::from_static(""),
                level_uid: HeaderValue::from_static(""),
                spec: FlowSchemaSpec::default(),
            })
        });
        let limits = schemas.iter().zip([reading, writing]);
        let limits = limits.map(|(schema, seats)| {
            let limits = Limits {
                nominal: seats,
                lendable: 0,
                most: seats,
                queuing: None,
            };
            (schema.level.clone(), limits)
        });
        Self {
            limits: limits.collect(),
            schemas: Vec::new(),
            plain: Some(schemas),
        }
    }

    /// The first schema that matches.
    pub fn classify(&self, user: &User, attributes: &Attributes) -> Option<&Arc<Schema>> {
        if let Some(plain) = &self.plain {
            // Whether somebody may look after the server does not depend on how busy it is.
            let resource = attributes.target().is_some();
            return resource.then(|| &plain[usize::from(attributes.mutates())]);
        }
        let matches = |schema: &&Arc<Schema>| schema.spec.matches(user, attributes);
        self.schemas.iter().find(matches)
    }
}

impl Schema {
    /// The flow of a request, as a number. Anonymous clients, who would all be one, are told apart by where they come
    /// from and by what they call themselves.
    pub fn flow(&self, user: &User, attributes: &Attributes, origin: Origin<'_>) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        let method = self.spec.distinguisher_method.as_ref();
        match method.map(|method| method.r#type.as_str()) {
            Some("ByUser") if user.is_anonymous() => origin.hash(&mut hasher),
            Some("ByUser") => user.name.hash(&mut hasher),
            Some("ByNamespace") => attributes.namespace().hash(&mut hasher),
            _ => {}
        }
        hasher.finish()
    }
}

impl FlowSchemaSpec {
    fn matches(&self, user: &User, attributes: &Attributes) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|s| s.matches(user))
                && match attributes.target() {
                    Some(_) => rule.resource_rules.iter().any(|r| r.matches(attributes)),
                    None => rule
                        .non_resource_rules
                        .iter()
                        .any(|r| r.matches(attributes)),
                }
        })
    }
}

impl Subject {
    fn matches(&self, user: &User) -> bool {
        match self.kind.as_str() {
            "User" => is_or_all(&self.user.name, &user.name),
            "Group" => self.group.name == "*" || user.is_in(&self.group.name),
            "ServiceAccount" => {
                let account = &self.service_account;
                user.service_account().is_some_and(|(namespace, name)| {
                    account.namespace == namespace && is_or_all(&account.name, name)
                })
            }
            _ => false,
        }
    }
}

impl ResourceRule {
    fn matches(&self, attributes: &Attributes) -> bool {
        let Some(kind) = attributes.kind() else {
            return false;
        };
        let resource = match attributes.subresource() {
            "" => has(&self.resources, kind.plural),
            subresource => self
                .resources
                .iter()
                .any(|r| r == "*" || r.split_once('/') == Some((kind.plural, subresource))),
        };
        let scope = match attributes.namespace() {
            "" => self.cluster_scope,
            namespace => has(&self.namespaces, namespace),
        };
        resource && scope && has(&self.verbs, attributes.verb) && has(&self.api_groups, kind.group)
    }
}

impl NonResourceRule {
    fn matches(&self, attributes: &Attributes) -> bool {
        has(&self.verbs, attributes.verb)
            && self.urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => attributes.path.starts_with(prefix),
                None => *url == attributes.path,
            })
    }
}

fn is_or_all(rule: &str, word: &str) -> bool {
    rule == "*" || rule == word
}

fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|rule| is_or_all(rule, word))
}

/// The seats of each limited level: its part of all shares, rounded up.
fn share_out(
    levels: &[(Arc<Object>, PriorityLevelSpec)],
    seats: u32,
) -> BTreeMap<Arc<str>, Limits> {
    let shares = |level: &PriorityLevelSpec| {
        let exempt = level.r#type == "Exempt";
        let given = if exempt {
            &level.exempt
        } else {
            &level.limited
        };
        let given = given.as_ref().and_then(|l| l.nominal_concurrency_shares);
        given.unwrap_or(if exempt { 0 } else { 30 })
    };
    let all: u64 = levels.iter().map(|(_, l)| u64::from(shares(l))).sum();
    let limited = levels.iter().filter(|(_, level)| level.r#type == "Limited");
    let limits = limited.map(|(object, level)| {
        let own = u64::from(seats) * u64::from(shares(level));
        let nominal = u32::try_from(own.div_ceil(all.max(1))).unwrap_or(u32::MAX);
        let default = Limited::default();
        let spec = level.limited.as_ref().unwrap_or(&default);
        let borrow = spec.borrowing_limit_percent;
        let borrow = borrow.map_or(seats, |percent| part(nominal, percent));
        let queuing = &spec.limit_response.queuing;
        let limits = Limits {
            nominal,
            lendable: part(nominal, spec.lendable_percent),
            most: nominal.saturating_add(borrow),
            queuing: (spec.limit_response.r#type == "Queue").then(|| Queuing {
                // What one object may make the server allocate.
                queues: queuing.queues.clamp(1, 10_000),
                hand: queuing.hand_size.clamp(1, 20),
                length: queuing.queue_length_limit,
            }),
        };
        ((*object.name).into(), limits)
    });
    limits.collect()
}

fn part(of: u32, percent: u32) -> u32 {
    let part = (u64::from(of) * u64::from(percent) + 50) / 100;
    u32::try_from(part).unwrap_or(u32::MAX)
}

/// The objects of a kind with their specifications; what cannot be understood is reported and left out.
fn specs<T: DeserializeOwned>(registry: &Registry, kind: &'static Kind) -> Vec<(Arc<Object>, T)> {
    let objects = registry.objects(kind).into_iter();
    objects
        .filter_map(|object| {
            let spec = object.value()["spec"].take();
            match serde_json::from_value(spec) {
                Ok(spec) => Some((object, spec)),
                Err(error) => {
                    tracing::warn!(kind = kind.kind, name = object.name, %error, "left out of flow control");
                    None
                }
            }
        })
        .collect()
}

fn header(uid: &str) -> HeaderValue {
    HeaderValue::from_str(uid).unwrap_or(HeaderValue::from_static(""))
}
