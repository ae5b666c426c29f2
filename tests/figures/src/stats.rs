//! Quantiles, and ratios taken round by round: what the host's changing speed cannot move.

/// A middle value and the quarter of the samples on each side of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub p25: f64,
    pub p75: f64,
}

impl Spread {
    /// Of at least one sample.
    #[must_use]
    pub fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            median: quantile(&sorted, 0.5),
            p25: quantile(&sorted, 0.25),
            p75: quantile(&sorted, 0.75),
        }
    }

    /// Of the ratios `samples[round] / versus[round]`: both were measured milliseconds apart, so that a host that
    /// changes its speed changes both.
    #[must_use]
    pub fn of_ratio(samples: &[f64], versus: &[f64]) -> Self {
        let ratios: Vec<f64> = samples.iter().zip(versus).map(|(a, b)| a / b).collect();
        Self::of(&ratios)
    }
}

/// The middle value of some latencies, in any order.
pub fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    quantile(samples, 0.5)
}

/// Of sorted samples, linear between the two nearest.
#[must_use]
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn quarters_are_taken_from_the_sorted_samples() {
        let spread = Spread::of(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(
            spread,
            Spread {
                median: 3.0,
                p25: 2.0,
                p75: 4.0
            }
        );
    }

    #[test]
    fn ratio_is_taken_within_a_round() {
        // The host halves its speed in the second and third round: the ratio does not notice.
        let spread = Spread::of_ratio(&[2.0, 4.0, 4.0], &[1.0, 2.0, 2.0]);
        assert_eq!(
            spread,
            Spread {
                median: 2.0,
                p25: 2.0,
                p75: 2.0
            }
        );
    }

    #[test]
    fn one_sample_is_its_own_spread() {
        assert_eq!(
            Spread::of(&[7.0]),
            Spread {
                median: 7.0,
                p25: 7.0,
                p75: 7.0
            }
        );
    }
}
