//! Who owns which fields of an object (`metadata.managedFields`), and server-side apply, which asks that.
//!
//! Follows <https://kubernetes.io/docs/reference/using-api/server-side-apply/>: a write takes what it changes away from
//! others; an apply is refused when it would, unless it is forced, and takes away what its manager applied before and
//! does no longer.

mod set;
mod walk;

use serde_json::{Value, json};

use crate::json::Json;
use crate::kinds::{Kind, Subresource};
use crate::meta;

use set::Set;
use walk::Node;

/// More writers than these are remembered together.
const UPDATES_MAX: usize = 10;
/// Under this name.
const ANCIENT: &str = "ancient-changes";
/// Who owns what was there before anybody was remembered.
const BEFORE: &str = "before-first-apply";

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    subresource: String,
    time: String,
    fields: Set,
}

/// Who writes, and what part of the object.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    pub subresource: Option<Subresource>,
}

/// Why an apply was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Others own the fields: who, as messages name them, and the path.
    Conflicts(Vec<(String, String)>),
    /// The config does not fit its lists.
    Malformed(String),
}

impl Writer<'_> {
    fn entry(self, kind: &Kind, apply: bool) -> Entry {
        Entry {
            manager: self.manager.to_owned(),
            apply,
            api_version: kind.api_version(),
            subresource: self.subresource.map_or("", Subresource::name).to_owned(),
            time: meta::now(),
            fields: Set::default(),
        }
    }

    /// Takes out what nobody owns, and what this write does not reach.
    fn limit(self, kind: &Kind, fields: &mut Set) {
        fields.member = false;
        for name in ["f:apiVersion", "f:kind"] {
            fields.children.remove(name);
        }
        for name in [
            "f:name",
            "f:namespace",
            "f:creationTimestamp",
            "f:selfLink",
            "f:uid",
            "f:generation",
            "f:managedFields",
            "f:resourceVersion",
        ] {
            fields.drop_path(&["f:metadata", name]);
        }
        if let Some(metadata) = fields.children.get_mut("f:metadata") {
            metadata.member = false;
        }
        match self.subresource {
            Some(Subresource::Status) => fields.children.retain(|step, _| step == "f:status"),
            _ if kind.has(Subresource::Status) => {
                fields.children.remove("f:status");
            }
            _ => {}
        }
        fields.children.retain(|_, child| !child.is_empty());
    }
}

impl Entry {
    fn parse(value: &Value) -> Option<Self> {
        let apply = match value.text("/operation") {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        Some(Self {
            manager: value.text("/manager").to_owned(),
            apply,
            api_version: value.text("/apiVersion").to_owned(),
            subresource: value.text("/subresource").to_owned(),
            time: value.text("/time").to_owned(),
            fields: Set::parse(value.get("fieldsV1")?),
        })
    }

    fn to_json(&self) -> Value {
        let mut out = json!({
            "manager": self.manager,
            "operation": if self.apply { "Apply" } else { "Update" },
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        for (key, text) in [("time", &self.time), ("subresource", &self.subresource)] {
            if !text.is_empty() {
                out[key] = text.as_str().into();
            }
        }
        out
    }

    /// Whether both are entries of one writer. An applier is one whatever version it applies in.
    fn same(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.apply == other.apply
            && self.subresource == other.subresource
            && (self.apply || self.api_version == other.api_version)
    }

    /// As messages name it.
    fn shown(&self) -> String {
        let mut name = Value::from(self.manager.as_str()).to_string();
        if !self.subresource.is_empty() {
            name.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.apply {
            name.push_str(&format!(" using {}", self.api_version));
        }
        name
    }
}

fn root(kind: &'static Kind) -> Node<'static> {
    kind.object_type().map_or(Node::Deduced, Node::Struct)
}

/// `None` when there is an entry that makes no sense.
fn entries(object: &Value) -> Option<Vec<Entry>> {
    let all = object.items("/metadata/managedFields");
    all.iter().map(Entry::parse).collect()
}

/// Notes in `new` who owns what after a write by `writer`; `old` is `None` for a new object.
pub fn update(kind: &'static Kind, old: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    let nothing = walk::nothing();
    let old = old.unwrap_or(&nothing);
    // A client may change the entries by hand, or do away with them by one that is empty.
    let given = new.items("/metadata/managedFields");
    let reset = matches!(given, [only] if only.as_object().is_some_and(serde_json::Map::is_empty));
    let mut all = match entries(new) {
        _ if reset => Vec::new(),
        Some(given) if !given.is_empty() => given,
        _ => entries(old).unwrap_or_default(),
    };
    if reset {
        store(new, &all);
        return;
    }
    let mut difference = walk::compare(root(kind), old, new);
    for set in [
        &mut difference.added,
        &mut difference.modified,
        &mut difference.removed,
    ] {
        writer.limit(kind, set);
    }
    let mut taken = difference.added;
    taken.unite(&difference.modified);
    let mut me = writer.entry(kind, false);
    for other in all.iter_mut().filter(|e| !e.same(&me)) {
        other.fields.subtract(&taken);
        other.fields.subtract(&difference.removed);
    }
    match all.iter_mut().find(|e| e.same(&me)) {
        Some(mine) => {
            let before = mine.fields.clone();
            mine.fields.subtract(&difference.removed);
            mine.fields.unite(&taken);
            if mine.fields != before {
                mine.time = me.time;
            }
        }
        None => {
            me.fields = taken;
            all.push(me);
        }
    }
    all.retain(|e| !e.fields.is_empty());
    forget_ancient(&mut all);
    store(new, &all);
}

/// What `live` becomes when `writer` applies `config`, with the new owners in it.
///
/// # Errors
/// Fields that others own, when it is not forced; a config whose lists cannot be merged.
pub fn apply(
    kind: &'static Kind,
    live: Option<&Value>,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Refusal> {
    let nothing = walk::nothing();
    let root = root(kind);
    let mut all = live.and_then(entries).unwrap_or_default();
    if let (Some(live), true) = (live, all.is_empty()) {
        let before = Writer {
            manager: BEFORE,
            subresource: None,
        };
        let mut entry = before.entry(kind, false);
        entry.fields = walk::fields(root, live);
        before.limit(kind, &mut entry.fields);
        all.extend((!entry.fields.is_empty()).then_some(entry));
    }
    let mut me = writer.entry(kind, true);
    me.fields = walk::fields(root, config);
    writer.limit(kind, &mut me.fields);
    let mut new = walk::merge(root, live, config).map_err(Refusal::Malformed)?;
    let last = all
        .iter()
        .position(|e| e.same(&me))
        .map(|at| all.remove(at));
    if let Some(last) = &last {
        let mut managed = me.fields.clone();
        all.iter().for_each(|e| managed.unite(&e.fields));
        walk::prune(root, &mut new, &last.fields, Some(&managed));
    }
    let mut difference = walk::compare(root, live.unwrap_or(&nothing), &new);
    let mut taken = difference.added;
    taken.unite(&difference.modified);
    writer.limit(kind, &mut taken);
    writer.limit(kind, &mut difference.removed);
    let inherited = live
        .map(|live| inherited(root, live, writer))
        .unwrap_or_default();
    let mut conflicts = Vec::new();
    for other in &mut all {
        let both = other.fields.intersect(&taken);
        let mut contested = both.clone();
        contested.subtract(&inherited);
        let who = other.shown();
        conflicts.extend(
            contested
                .paths()
                .into_iter()
                .map(|path| (who.clone(), path)),
        );
        other.fields.subtract(&both);
        other.fields.subtract(&difference.removed);
    }
    if !force && !conflicts.is_empty() {
        return Err(Refusal::Conflicts(conflicts));
    }
    if let Some(last) = last.filter(|l| l.fields == me.fields && l.api_version == me.api_version) {
        me.time = last.time;
    }
    all.push(me);
    all.retain(|e| !e.fields.is_empty());
    store(&mut new, &all);
    remember(&mut new, config, writer);
    Ok(new)
}

const LAST_APPLIED: &str =
    "/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration";

/// kubectl's own note of what it applied is kept true where there is one, so that it may go back to applying on the
/// client's side.
fn remember(new: &mut Value, config: &Value, writer: Writer<'_>) {
    if writer.manager != "kubectl" || new.text(LAST_APPLIED).is_empty() {
        return;
    }
    let mut config = config.clone();
    config.take_at(LAST_APPLIED);
    new.put(LAST_APPLIED, format!("{config}\n"));
}

/// What kubectl has applied on the client's side before, and nobody has changed since: going over to server-side apply
/// takes these fields without a conflict.
fn inherited(root: Node<'_>, live: &Value, writer: Writer<'_>) -> Set {
    let last = serde_json::from_str::<Value>(live.text(LAST_APPLIED));
    match last {
        Ok(last) if writer.manager == "kubectl" => {
            let mut fields = walk::fields(root, &last);
            fields.subtract(&walk::compare(root, live, &last).modified);
            fields
        }
        _ => Set::default(),
    }
}

/// Keeps the newest writers and remembers the others together.
fn forget_ancient(all: &mut Vec<Entry>) {
    while all.iter().filter(|e| !e.apply).count() > UPDATES_MAX {
        let mut updates: Vec<usize> = (0..all.len()).filter(|&at| !all[at].apply).collect();
        updates.sort_by(|&a, &b| all[a].time.cmp(&all[b].time));
        let oldest = updates.into_iter().find(|&at| all[at].manager != ANCIENT);
        let Some(oldest) = oldest.map(|at| all.remove(at)) else {
            return;
        };
        let ancient = Entry {
            manager: ANCIENT.to_owned(),
            subresource: String::new(),
            ..oldest
        };
        match all.iter_mut().find(|e| e.same(&ancient)) {
            Some(entry) => {
                entry.fields.unite(&ancient.fields);
                entry.time = ancient.time;
            }
            None => all.push(ancient),
        }
    }
}

fn store(object: &mut Value, all: &[Entry]) {
    let mut sorted: Vec<&Entry> = all.iter().collect();
    sorted.sort_by_key(|e| {
        (
            !e.apply,
            &e.time,
            &e.manager,
            &e.api_version,
            &e.subresource,
        )
    });
    if sorted.is_empty() {
        object.take_at("/metadata/managedFields");
        return;
    }
    let list: Vec<Value> = sorted.into_iter().map(Entry::to_json).collect();
    object.put("/metadata/managedFields", list);
}

#[cfg(test)]
mod tests;
