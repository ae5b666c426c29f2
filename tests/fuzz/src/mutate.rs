//! Inputs beside the seeds, for `cargo test`: changed as a fuzzer changes them, but blindly and the same in every run.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Target;

/// Values at which lengths and counts change their meaning.
const EDGES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
/// Changes of one input, at most.
const CHANGES: usize = 8;

/// Runs a target on changed seeds for a while; answers how many.
pub fn run(target: &Target, time: Duration) -> u64 {
    let mut random = StdRng::seed_from_u64(target.name.len() as u64);
    let (seeds, begun) = ((target.seeds)(), Instant::now());
    let mut runs = 0;
    while begun.elapsed() < time {
        for seed in &seeds {
            let other = &seeds[random.random_range(0..seeds.len())];
            let mut input = seed.clone();
            for _ in 0..random.random_range(1..=CHANGES) {
                change(&mut input, other, &mut random);
            }
            (target.run)(&input);
            runs += 1;
        }
    }
    runs
}

fn change(input: &mut Vec<u8>, other: &[u8], random: &mut StdRng) {
    let at = random.random_range(0..=input.len());
    let length = random.random_range(0..=(input.len() - at).min(16));
    match random.random_range(0..6) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = EDGES[random.random_range(0..EDGES.len())],
        2 => input.insert(at, random.random()),
        3 => drop(input.drain(at..at + length)),
        4 => {
            let repeated = input[at..at + length].to_vec();
            input.splice(at..at, repeated);
        }
        _ => {
            let from = random.random_range(0..=other.len());
            let until = random.random_range(from..=other.len().min(from + 32));
            input.splice(at..at + length, other[from..until].iter().copied());
        }
    }
}
