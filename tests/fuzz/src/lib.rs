//! What the node reads of others, each as a function of bytes that must not panic, and whose result must hold together.
//!
//! `cargo xtask fuzz [TARGET] [--seconds N]` runs them under libFuzzer, which looks for inputs that reach new code;
//! `cargo test` runs the seeds.
#![forbid(unsafe_code)]

#[cfg(test)]
mod mutate;
mod node;
mod packets;
mod pods;
mod registry;

/// Something that takes foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    /// Panics if anything is wrong.
    pub run: fn(&[u8]),
    /// Inputs that reach far, for the fuzzer to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const ALL: &[Target] = &[
    packets::VXLAN,
    packets::UDP,
    packets::HANDED_ON,
    packets::FROM_POD,
    packets::FROM_HOST,
    registry::NET_CONF,
    registry::ANNOTATIONS,
    registry::ETCD,
    registry::SUBNET_ENV,
    pods::CNI_CONF,
    pods::CNI_ENVIRONMENT,
    pods::CNI_REQUEST,
    node::SERVICES_FILE,
    node::SHARES,
];

/// The target with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}

/// Seeds that are texts.
fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_and_every_seed_cut_short_is_taken() {
        for target in ALL {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty(), "{}", target.name);
            for seed in seeds {
                for len in 0..=seed.len() {
                    (target.run)(&seed[..len]);
                }
            }
        }
    }

    #[test]
    fn every_seed_with_one_byte_changed_is_taken() {
        for target in ALL {
            for mut seed in (target.seeds)() {
                for at in 0..seed.len() {
                    for flip in [0x01, 0x80, 0xff] {
                        seed[at] ^= flip;
                        (target.run)(&seed);
                        seed[at] ^= flip;
                    }
                }
            }
        }
    }

    #[test]
    fn every_target_takes_changed_seeds_for_half_a_second() {
        for target in ALL {
            let runs = mutate::run(target, std::time::Duration::from_millis(500));
            println!("{}: {runs} inputs", target.name);
            assert!(runs > 0, "{}", target.name);
        }
    }

    #[test]
    fn a_target_is_found_by_its_name() {
        for target in ALL {
            assert_eq!(find(target.name).map(|found| found.name), Some(target.name));
        }
        assert!(find("no such target").is_none());
    }
}
