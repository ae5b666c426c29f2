//! The landed figures of `packets`, read back from the tables in docs/benchmarks.md, and what moved since.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tests_figures::markdown;

use crate::program_info::ProgramInfo;
use crate::report::Row;

/// The figures of an earlier run.
#[derive(Debug, Default, PartialEq)]
pub struct Landed {
    /// By path: ratio, and the quarter on each side.
    ratios: BTreeMap<String, [f64; 3]>,
    /// By program: verified, instructions, bytes.
    programs: BTreeMap<String, [u32; 3]>,
}

const PROGRAM_COLUMNS: [&str; 4] = ["program", "verified", "instructions", "native bytes"];

/// Reads the tables of [`crate::report::table`] and [`program_table`] wherever they stand in a Markdown file; of each row
/// the first counts, as older ones may follow.
pub fn read(path: &Path) -> Result<Landed> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("--compare {}: read the landed figures", path.display()))?;
    parse(&text).with_context(|| format!("--compare {}", path.display()))
}

/// One line a program.
pub fn program_table(programs: &BTreeMap<&'static str, ProgramInfo>) -> String {
    let mut lines = vec![PROGRAM_COLUMNS.map(str::to_owned).to_vec()];
    for (name, info) in programs {
        let sizes = sizes(info).map(|size| size.to_string());
        lines.push([(*name).to_owned()].into_iter().chain(sizes).collect());
    }
    markdown(lines)
}

fn sizes(info: &ProgramInfo) -> [u32; 3] {
    [info.verified, info.instructions, info.jited_len]
}

fn parse(text: &str) -> Result<Landed> {
    let mut landed = Landed::default();
    let mut in_programs = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, cells @ .., _] = &cells[..] else {
            in_programs = false;
            continue;
        };
        // Another table may follow at once.
        in_programs &= cells.len() == PROGRAM_COLUMNS.len();
        if *cells == PROGRAM_COLUMNS {
            in_programs = true;
        } else if in_programs && !cells[0].starts_with('-') {
            let [name, sizes @ ..] = cells else { continue };
            let sizes = sizes.iter().map(|size| size.parse());
            let sizes: Vec<u32> = sizes.collect::<Result<_, _>>().context(line.to_owned())?;
            let sizes = sizes.try_into().ok().context("a program has three sizes")?;
            landed.programs.entry((*name).to_owned()).or_insert(sizes);
        } else if let ["run_time", case, _, _, _, ratio, spread, ..] = cells {
            let (p25, p75) = spread.split_once("..").context(line.to_owned())?;
            let numbers = [*ratio, p25, p75].map(str::parse::<f64>);
            let [Ok(ratio), Ok(p25), Ok(p75)] = numbers else {
                bail!("no numbers in {line:?}");
            };
            let landed = landed.ratios.entry((*case).to_owned());
            landed.or_insert([ratio, p25, p75]);
        }
    }
    if landed.ratios.is_empty() {
        bail!("there is no row of run_time in it: paste the table of `cargo xtask bench packets`");
    }
    Ok(landed)
}

impl Landed {
    /// Tells what moved; an error if something got slower.
    pub fn compare(
        &self,
        rows: &[Row],
        programs: &BTreeMap<&'static str, ProgramInfo>,
    ) -> Result<()> {
        let mut slower = Vec::new();
        for row in rows {
            let Some(&[ratio, p25, p75]) = self.ratios.get(&row.case) else {
                println!("{}: new, {:.2}", row.case, row.ratio);
                continue;
            };
            let now_below = row.ratio < p25 && row.ratio_p75 < ratio;
            let now_above = row.ratio > p75 && row.ratio_p25 > ratio;
            if now_above {
                slower.push(row.case.as_str());
            }
            if now_above || now_below {
                let word = if now_above { "slower" } else { "faster" };
                println!(
                    "{}: {ratio:.3} ({p25:.3}..{p75:.3}) -> {:.3} ({:.3}..{:.3}): {word}",
                    row.case, row.ratio, row.ratio_p25, row.ratio_p75
                );
            }
        }
        for (&name, info) in programs {
            let now = sizes(info);
            match self.programs.get(name) {
                None => println!("{name}: new, {now:?}"),
                Some(&then) if then != now => {
                    println!("{name}: verified, instructions, native bytes {then:?} -> {now:?}")
                }
                Some(_) => {}
            }
        }
        if !slower.is_empty() {
            bail!("slower than the landed figures: {}", slower.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interleave::Samples;
    use crate::report;

    fn row(ratio: f64) -> Row {
        let names = ["path", "empty"].map(str::to_owned).to_vec();
        let spread = [0.99, 1.0, 1.01].map(|factor| ratio * factor).to_vec();
        let samples = Samples::new(names, vec![spread, vec![1.0; 3]]);
        Row::new("packets", "run_time", "ns", &samples, "path", "empty").unwrap()
    }

    fn program(verified: u32) -> BTreeMap<&'static str, ProgramInfo> {
        let info = ProgramInfo {
            id: 1,
            name: "from_pod".to_owned(),
            jited_len: 3,
            instructions: 2,
            verified,
            run_time_ns: 0,
            run_count: 0,
        };
        BTreeMap::from([("from_pod", info)])
    }

    #[test]
    fn what_the_bench_prints_is_what_it_reads() {
        let text = format!(
            "# Page\n\n{}{}\nwords | and more\n\nOlder:\n\n{}{}\n",
            program_table(&program(1)),
            report::table(&[row(5.0)]),
            program_table(&program(9)),
            report::table(&[row(7.0)])
        );
        let landed = parse(&text).unwrap();
        assert_eq!(landed.programs["from_pod"], [1, 2, 3]);
        let [ratio, p25, p75] = landed.ratios["path"];
        assert!(p25 < ratio && ratio == 5.0 && ratio < p75);
    }

    #[test]
    fn a_page_without_the_table_is_an_error() {
        let error = parse("| metric | case |\n").unwrap_err().to_string();
        assert!(error.contains("paste the table"), "{error}");
    }

    #[test]
    fn only_what_leaves_its_spread_is_slower() {
        let landed = parse(&report::table(&[row(5.0)])).unwrap();
        landed.compare(&[row(5.01)], &program(1)).unwrap();
        landed.compare(&[row(4.0)], &program(1)).unwrap();
        let error = landed.compare(&[row(5.2)], &program(1)).unwrap_err();
        assert_eq!(error.to_string(), "slower than the landed figures: path");
    }
}
