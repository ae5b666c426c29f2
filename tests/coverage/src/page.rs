//! The page: which test asks for which cell, as Markdown; and the same read back from the page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use control_plane_registry::{Kind, kinds};

use crate::cell::{self, Cell};
use crate::record::Asked;

/// How many tests the page names for a cell.
const NAMED: usize = 2;

const HEAD: &str = "# API coverage

Which test asks the API server for which verb, patch, selector and subresource of each kind, and is answered. Written by
`cargo xtask api-coverage`, which runs the tests of clients and records what they ask; `cargo xtask check` fails when
a kind, a verb or a test came or went since. The numbers are those of the tests at the end; `-` is served and asked for
by none of them, an empty field is not served.
";

const MISSING: &str = "What leads to a kubelet is asked for where there is one, by `node-agent/kubelet/tests/kubectl.rs`, which keeps no record.

";

/// Tests by what they ask for: the name of a kind, and the title of a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage(BTreeMap<(String, String), Vec<String>>);

impl Coverage {
    /// What a record shows. Of the tests that ask for the same, those that ask for most are named, so that few suffice.
    #[must_use]
    pub fn of(tests: &BTreeMap<String, Vec<Asked>>) -> Self {
        let mut cells: BTreeMap<(String, String), BTreeSet<&str>> = BTreeMap::new();
        for (test, requests) in tests {
            for (kind, found) in requests.iter().filter_map(cell::asked) {
                let served = cell::served(kind);
                for cell in found.iter().filter(|cell| served.contains(cell)) {
                    cells
                        .entry((name(kind), title(cell)))
                        .or_default()
                        .insert(test);
                }
            }
        }
        let mut breadth: BTreeMap<&str, usize> = BTreeMap::new();
        for test in cells.values().flatten() {
            *breadth.entry(*test).or_default() += 1;
        }
        let chosen = cells.into_iter().map(|(key, tests)| {
            let mut tests: Vec<&str> = tests.into_iter().collect();
            tests.sort_by_key(|test| (usize::MAX - breadth[test], *test));
            let named = tests.into_iter().take(NAMED).map(ToOwned::to_owned);
            (key, named.collect())
        });
        Self(chosen.collect())
    }

    /// What a page says.
    #[must_use]
    pub fn read(page: &str) -> Self {
        let tests: BTreeMap<&str, &str> = page
            .lines()
            .filter_map(|line| line.split_once(". `"))
            .filter_map(|(number, rest)| Some((number, rest.strip_suffix('`')?)))
            .collect();
        let mut cells = BTreeMap::new();
        let mut heads: Vec<&str> = Vec::new();
        for line in page.lines().filter(|line| line.starts_with("| ")) {
            let fields: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if fields[0] == "kind" {
                heads = fields;
                continue;
            }
            // One row may stand for many cells, with their titles as heads, or for the one that it names.
            let pairs: Vec<(&str, &str)> = match heads.get(1) {
                Some(&"asked for") => vec![(fields[1], fields[2])],
                _ => heads
                    .iter()
                    .copied()
                    .zip(fields.iter().copied())
                    .skip(1)
                    .collect(),
            };
            for (title, numbers) in pairs {
                let named: Vec<String> = numbers
                    .split(' ')
                    .filter_map(|number| tests.get(number))
                    .map(|test| (*test).to_owned())
                    .collect();
                if !named.is_empty() {
                    cells.insert((fields[0].to_owned(), title.to_owned()), named);
                }
            }
        }
        Self(cells)
    }

    /// Every test that is named.
    #[must_use]
    pub fn tests(&self) -> BTreeSet<&str> {
        self.0.values().flatten().map(String::as_str).collect()
    }

    /// The page.
    #[must_use]
    pub fn render(&self) -> String {
        let tests = self.tests();
        let numbers: BTreeMap<&str, usize> = tests
            .iter()
            .enumerate()
            .map(|(at, test)| (*test, at + 1))
            .collect();
        let named = |kind: &Kind, cell: &Cell| -> String {
            let found = self.0.get(&(name(kind), title(cell)));
            let numbers = found
                .into_iter()
                .flatten()
                .map(|test| numbers[test.as_str()].to_string());
            match numbers.collect::<Vec<_>>() {
                none if none.is_empty() => "-".to_owned(),
                some => some.join(" "),
            }
        };
        let mut page = HEAD.to_owned();
        page.push_str(&self.summary());
        page.push_str("\n## Verbs\n\n");
        page.push_str(&verbs(&named));
        let fields = |cell: &Cell| matches!(cell, Cell::Field(_));
        let subresources = |cell: &Cell| matches!(cell, Cell::Subresource(..));
        page.push_str("\n## Field selectors\n\n");
        page.push_str(&list(&named, fields));
        page.push_str("\n## Subresources\n\n");
        page.push_str(&list(&named, subresources));
        page.push_str("\n## Asked for by no test\n\n");
        page.push_str(MISSING);
        page.push_str(&self.missing());
        page.push_str("\n## Tests\n\n");
        for test in tests {
            let _ = writeln!(page, "{}. `{test}`", numbers[test]);
        }
        page
    }

    fn has(&self, kind: &Kind, cell: &Cell) -> bool {
        self.0.contains_key(&(name(kind), title(cell)))
    }

    fn summary(&self) -> String {
        let all: Vec<_> = kinds::all()
            .flat_map(|kind| cell::served(kind).into_iter().map(move |cell| (kind, cell)))
            .collect();
        let covered = all
            .iter()
            .filter(|(kind, cell)| self.has(kind, cell))
            .count();
        format!(
            "\n{} kinds with {} things to ask for, of which tests ask for {covered}.\n",
            kinds::all().count(),
            all.len()
        )
    }

    fn missing(&self) -> String {
        let mut text = String::new();
        for kind in kinds::all() {
            let served = cell::served(kind);
            let missing: Vec<String> = served
                .iter()
                .filter(|cell| !self.has(kind, cell))
                .map(title)
                .collect();
            if !missing.is_empty() {
                let _ = writeln!(text, "- {}: {}", name(kind), missing.join(", "));
            }
        }
        if text.is_empty() {
            text.push_str("Nothing.\n");
        }
        text
    }
}

/// One row a kind, one column a verb.
fn verbs(named: &impl Fn(&Kind, &Cell) -> String) -> String {
    let mut columns: Vec<Cell> = kinds::all()
        .flat_map(cell::served)
        .filter(|cell| matches!(cell, Cell::Verb(_) | Cell::Labels))
        .collect();
    columns.sort();
    columns.dedup();
    let titles: Vec<String> = columns.iter().map(title).collect();
    let mut text = format!("| kind | {} |\n", titles.join(" | "));
    text.push_str(&"|---".repeat(titles.len() + 1));
    text.push_str("|\n");
    for kind in kinds::all() {
        let served = cell::served(kind);
        let fields: Vec<String> = columns
            .iter()
            .map(|cell| {
                if served.contains(cell) {
                    named(kind, cell)
                } else {
                    String::new()
                }
            })
            .collect();
        let _ = writeln!(text, "| {} | {} |", name(kind), fields.join(" | "));
    }
    text
}

/// One row a cell.
fn list(named: &impl Fn(&Kind, &Cell) -> String, wanted: impl Fn(&Cell) -> bool) -> String {
    let mut text = "| kind | asked for | tests |\n|---|---|---|\n".to_owned();
    for kind in kinds::all() {
        for cell in cell::served(kind).iter().filter(|cell| wanted(cell)) {
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                name(kind),
                title(cell),
                named(kind, cell)
            );
        }
    }
    text
}

fn name(kind: &Kind) -> String {
    format!("{} {}", kind.api_version(), kind.kind)
}

fn title(cell: &Cell) -> String {
    match cell {
        Cell::Verb(verb) => verb.clone(),
        Cell::Labels => "by labels".to_owned(),
        Cell::Field(field) => field.clone(),
        Cell::Subresource(subresource, verb) => format!("{subresource} {verb}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: &str, path: &str, query: &str) -> Asked {
        Asked {
            test: String::new(),
            method: method.into(),
            path: path.into(),
            query: query.into(),
            content_type: String::new(),
        }
    }

    fn coverage() -> Coverage {
        let pods = "/api/v1/namespaces/a/pods";
        Coverage::of(&BTreeMap::from([
            (
                "s::broad".to_owned(),
                vec![
                    asked("GET", pods, "fieldSelector=spec.nodeName=n"),
                    asked("POST", pods, ""),
                ],
            ),
            ("s::narrow".to_owned(), vec![asked("GET", pods, "")]),
            (
                "s::third".to_owned(),
                vec![
                    asked("GET", pods, ""),
                    asked("GET", &format!("{pods}/p/status"), ""),
                ],
            ),
        ]))
    }

    #[test]
    fn the_page_can_be_read_back_and_names_the_broadest_tests() {
        let coverage = coverage();
        let page = coverage.render();
        assert_eq!(Coverage::read(&page), coverage);
        assert_eq!(coverage.tests(), BTreeSet::from(["s::broad", "s::third"]));
        assert!(page.contains("| v1 Pod | spec.nodeName | 1 |"), "{page}");
        assert!(page.contains("| v1 Pod | status get | 2 |"), "{page}");
    }

    #[test]
    fn what_no_test_asks_for_is_listed() {
        let page = coverage().render();
        let missing = page
            .split("## Asked for by no test")
            .nth(1)
            .unwrap_or_default();
        assert!(missing.contains("- v1 Pod: delete"), "{missing}");
        assert!(!missing.contains("status get, status get"), "{missing}");
        assert!(missing.contains("- v1 Service: create"), "{missing}");
    }
}
