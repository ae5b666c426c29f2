//! All variants in turns: each round runs a slice of a few milliseconds of every variant, in a new order.

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

/// One thing to measure. A slice returns its figure: a median latency or a cost per packet, in nanoseconds.
pub struct Variant<'a> {
    pub name: String,
    pub slice: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl std::fmt::Debug for Variant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Variant")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<'a> Variant<'a> {
    pub fn new(name: impl Into<String>, slice: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self {
            name: name.into(),
            slice: Box::new(slice),
        }
    }

    fn run(&mut self) -> Result<f64> {
        (self.slice)().with_context(|| format!("measure {}", self.name))
    }
}

/// What was measured: for each variant one figure a round.
#[derive(Debug)]
pub struct Samples {
    pub names: Vec<String>,
    pub rounds: usize,
    values: Vec<Vec<f64>>,
}

impl Samples {
    /// One list of figures for each name; all of one length.
    pub fn new(names: Vec<String>, values: Vec<Vec<f64>>) -> Self {
        let rounds = values.first().map_or(0, Vec::len);
        Self {
            names,
            rounds,
            values,
        }
    }

    /// The figures of a variant by its name, round by round.
    pub fn of(&self, name: &str) -> Option<&[f64]> {
        let index = self.names.iter().position(|n| n == name)?;
        Some(&self.values[index])
    }
}

/// Runs every variant once to warm up and then in `rounds` rounds, each in an order of its own.
pub fn interleave(variants: &mut [Variant<'_>], rounds: usize) -> Result<Samples> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut order: Vec<usize> = (0..variants.len()).collect();
    let mut values = vec![Vec::with_capacity(rounds); variants.len()];
    for variant in variants.iter_mut() {
        variant.run()?;
    }
    for _ in 0..rounds {
        order.shuffle(&mut rng);
        for &index in &order {
            values[index].push(variants[index].run()?);
        }
    }
    let names = variants.iter().map(|v| v.name.clone()).collect();
    Ok(Samples::new(names, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_gets_one_slice_a_round_and_one_to_warm_up() {
        let (mut a, mut b) = (0.0, 0.0);
        let samples = interleave(
            &mut [
                Variant::new("a", || {
                    a += 1.0;
                    Ok(a)
                }),
                Variant::new("b", || {
                    b -= 1.0;
                    Ok(b)
                }),
            ],
            3,
        )
        .unwrap();
        assert_eq!(samples.of("a"), Some([2.0, 3.0, 4.0].as_slice()));
        assert_eq!(samples.of("b"), Some([-2.0, -3.0, -4.0].as_slice()));
        assert_eq!(samples.of("c"), None);
    }

    #[test]
    fn a_failed_slice_names_its_variant() {
        let error = interleave(
            &mut [Variant::new("broken", || anyhow::bail!("no answer"))],
            1,
        )
        .unwrap_err();
        assert_eq!(format!("{error:#}"), "measure broken: no answer");
    }
}
