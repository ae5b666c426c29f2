//! `docs/maps.md` names exactly the fields that the object's BTF has, which are those that bpftool prints.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::maps;

/// A type of BTF as far as maps need it (<https://docs.kernel.org/bpf/btf.html>, section 2).
#[derive(Clone, Debug)]
enum Type {
    Pointer(u32),
    Struct {
        name: String,
        members: Vec<(String, u32)>,
    },
    Variable {
        name: String,
        of: u32,
    },
    /// Typedefs and qualifiers.
    Alias(u32),
    Other,
}

struct Btf {
    types: Vec<Type>,
}

#[test]
fn the_page_names_the_fields_of_every_map() {
    let btf = Btf::of_object();
    let page = documented();
    let mut differences = Vec::new();
    for map in maps::ALL {
        let actual = btf.fields_of_map(map);
        let Some(documented) = page.get(*map) else {
            differences.push(format!("{map} has no section"));
            continue;
        };
        for field in actual.difference(documented) {
            differences.push(format!("{map}: {field} is not on the page"));
        }
        for field in documented.difference(&actual) {
            differences.push(format!("{map}: {field} is on the page, but not in the map"));
        }
    }
    for map in page.keys().filter(|map| !maps::ALL.contains(&map.as_str())) {
        differences.push(format!("{map} is on the page, but is no map"));
    }
    assert!(
        differences.is_empty(),
        "docs/maps.md:\n{}",
        differences.join("\n")
    );
}

/// The fields that the page's tables name, by map. A heading may name several maps.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/maps.md");
    let page = std::fs::read_to_string(path).expect("docs/maps.md is there");
    let mut documented: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let maps = heading.split(", ").filter(|name| name.contains("_v"));
            names = maps.map(String::from).collect();
        }
        if let Some((field, _)) = line
            .strip_prefix("| `")
            .and_then(|rest| rest.split_once('`'))
        {
            for name in &names {
                documented
                    .entry(name.clone())
                    .or_default()
                    .insert(field.into());
            }
        }
    }
    documented
}

impl Btf {
    fn of_object() -> Self {
        let object = aya_obj::Object::parse(node_agent_maps::OBJECT).expect("the object parses");
        let bytes = object.btf.expect("the object has BTF").to_bytes();
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Self {
        let word =
            |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (header, type_offset, type_len) = (word(4) as usize, word(8), word(12));
        let string_offset = header + word(16) as usize;
        let name = |offset: u32| {
            let start = string_offset + offset as usize;
            let end = start
                + bytes[start..]
                    .iter()
                    .position(|&b| b == 0)
                    .expect("NUL at the end");
            String::from_utf8_lossy(&bytes[start..end]).into_owned()
        };
        let mut at = header + type_offset as usize;
        let end = at + type_len as usize;
        // Type 0 is void.
        let mut types = vec![Type::Other];
        while at < end {
            let (type_name, info, size_or_type) = (word(at), word(at + 4), word(at + 8));
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            at += 12;
            let (parsed, extra) = match kind {
                2 => (Type::Pointer(size_or_type), 0),
                4 | 5 => {
                    let members = (0..count)
                        .map(|n| (name(word(at + n * 12)), word(at + n * 12 + 4)))
                        .collect();
                    (
                        Type::Struct {
                            name: name(type_name),
                            members,
                        },
                        count * 12,
                    )
                }
                8..=11 | 18 => (Type::Alias(size_or_type), 0),
                14 => (
                    Type::Variable {
                        name: name(type_name),
                        of: size_or_type,
                    },
                    4,
                ),
                // What follows the other kinds: int, array, enum, prototype, section, declaration tag, enum64.
                1 | 17 => (Type::Other, 4),
                3 | 19 => (Type::Other, 12 * if kind == 3 { 1 } else { count }),
                6 | 13 => (Type::Other, count * 8),
                15 => (Type::Other, count * 12),
                _ => (Type::Other, 0),
            };
            types.push(parsed);
            at += extra;
        }
        Self { types }
    }

    /// The names of a map's fields as bpftool prints them.
    fn fields_of_map(&self, map: &str) -> BTreeSet<String> {
        let definition = self.types.iter().find_map(|of_type| match of_type {
            Type::Variable { name, of } if name == map => Some(*of),
            _ => None,
        });
        let definition = definition.unwrap_or_else(|| panic!("the BTF has no variable {map}"));
        let members = self.definition_members(definition);
        let mut fields = BTreeSet::new();
        for part in ["key", "value"] {
            let (_, pointer) = members
                .iter()
                .find(|(name, _)| name == part)
                .unwrap_or_else(|| panic!("{map} has no {part}: {members:?}"));
            let Type::Pointer(target) = self.resolve(*pointer) else {
                panic!("{part} of {map} is no pointer")
            };
            self.collect(part.into(), target, &mut fields);
        }
        fields
    }

    /// The members of a map's definition, which aya may wrap in structs of one member.
    fn definition_members(&self, id: u32) -> Vec<(String, u32)> {
        match self.resolve(id) {
            Type::Struct { members, .. } if members.len() == 1 => {
                self.definition_members(members[0].1)
            }
            Type::Struct { members, .. } => members,
            other => panic!("a map's definition is a struct, not {other:?}"),
        }
    }

    /// Adds the leaves under `path`. An address is a leaf: its only field is its bytes.
    fn collect(&self, path: String, id: u32, fields: &mut BTreeSet<String>) {
        match self.resolve(id) {
            Type::Struct { name, members } if !name.starts_with("Addr") => {
                for (member, member_type) in members {
                    self.collect(format!("{path}.{member}"), member_type, fields);
                }
            }
            _ => {
                fields.insert(path);
            }
        }
    }

    fn resolve(&self, id: u32) -> Type {
        match &self.types[id as usize] {
            Type::Alias(of) => self.resolve(*of),
            other => other.clone(),
        }
    }
}
