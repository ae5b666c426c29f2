//! Quantities, exactly: `100m`, `1Gi`, `2e3`
//! (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>).

use std::cmp::Ordering;
use std::fmt;

/// Nothing is finer than a billionth.
const NANO: i128 = 1_000_000_000;
/// As much as a quantity can be, in billionths: Kubernetes caps at 2^63 - 1 too.
const MOST: i128 = i64::MAX as i128 * NANO;

/// How a quantity is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Format {
    /// With the suffixes n, u, m, k, M, G, T, P, E.
    #[default]
    Decimal,
    /// With the suffixes Ki, Mi, Gi, Ti, Pi, Ei.
    Binary,
    /// With an exponent: `2e3`.
    Exponent,
}

/// An amount of something. Two are equal when they are the same amount, however they are written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    /// So many whole things.
    #[must_use]
    pub const fn count(number: u32) -> Self {
        Self {
            nanos: number as i128 * NANO,
            format: Format::Decimal,
        }
    }

    /// Reads a quantity; `None` when it is none. What is finer than a billionth is rounded up, what is too large capped.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let end = text
            .char_indices()
            .find(|&(at, c)| !(c.is_ascii_digit() || c == '.' || (at == 0 && "+-".contains(c))))
            .map_or(text.len(), |(at, _)| at);
        let (number, suffix) = text.split_at(end);
        let (format, base, power) = scale(suffix)?;
        let negative = number.starts_with('-');
        let number = number.trim_start_matches(['+', '-']);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let size = magnitude(whole, fraction, base, power);
        Some(Self {
            nanos: if negative { -size } else { size },
            format,
        })
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let format = if self.nanos == 0 {
            other.format
        } else {
            self.format
        };
        let sum = self.nanos.saturating_add(other.nanos);
        Self {
            nanos: sum.clamp(-MOST, MOST),
            format,
        }
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.plus(Self {
            nanos: -other.nanos,
            format: other.format,
        })
    }

    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.nanos == 0
    }

    #[must_use]
    pub const fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a number of whole things.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "it is for ratios and for showing"
    )]
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// The number of whole things; `None` when it is not whole, or too many.
    #[must_use]
    pub fn as_integer(self) -> Option<i64> {
        self.is_whole()
            .then(|| i64::try_from(self.nanos / NANO).ok())?
    }
}

/// Format, base and power of a suffix.
fn scale(suffix: &str) -> Option<(Format, u32, i32)> {
    let decimal = |power| Some((Format::Decimal, 10, power));
    let binary = |power| Some((Format::Binary, 1024, power));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            Some((Format::Exponent, 10, power))
        }
    }
}

/// `whole.fraction` times `base` to the `power`, in billionths, rounded up.
fn magnitude(whole: &str, fraction: &str, base: u32, power: i32) -> i128 {
    let (mut size, mut divisor) = (0i128, 1i128);
    let mut rest = false;
    for (at, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        if at >= whole.len() {
            if divisor >= 1_000_000_000_000_000_000 {
                rest |= digit != b'0';
                continue;
            }
            divisor *= 10;
        }
        size = size
            .saturating_mul(10)
            .saturating_add(i128::from(digit - b'0'));
        if size > MOST {
            size = MOST;
        }
    }
    let mut size = size.saturating_mul(NANO);
    for _ in 0..power.clamp(0, 64) {
        size = size.saturating_mul(i128::from(base));
    }
    for _ in 0..power.saturating_neg().clamp(0, 64) {
        rest |= size % i128::from(base) != 0;
        size /= i128::from(base);
    }
    rest |= size % divisor != 0;
    (size / divisor + i128::from(rest)).min(MOST)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// In the canonical form: no fraction, and the largest suffix that allows it.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::Binary && self.nanos.abs() >= 1024 * NANO {
            // A part of a thing is rounded up.
            let mut number = self.nanos / NANO + i128::from(self.nanos % NANO > 0);
            let mut at = 0;
            while number % 1024 == 0 && at + 1 < BINARY.len() {
                number /= 1024;
                at += 1;
            }
            return write!(f, "{number}{}", BINARY[at]);
        }
        let (mut number, mut at) = (self.nanos, 0);
        while number % 1000 == 0 && at + 1 < DECIMAL.len() {
            number /= 1000;
            at += 1;
        }
        match (self.format, at) {
            (Format::Exponent, 3) | (_, 3) => write!(f, "{number}"),
            (Format::Exponent, at) => {
                let exponent = (i64::try_from(at).unwrap_or_default() - 3) * 3;
                write!(f, "{number}e{exponent}")
            }
            (_, at) => write!(f, "{number}{}", DECIMAL[at]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_shown_in_the_canonical_form() {
        for (text, shown) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("2048", "2048"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("1000000", "1M"),
            ("-250m", "-250m"),
            ("0.0000000001", "1n"),
            ("1.25Ki", "1280"),
            ("100Ei", "9223372036854775807"),
            ("0Gi", "0"),
            ("12e-3", "12e-3"),
        ] {
            let quantity = Quantity::parse(text).expect(text);
            assert_eq!(quantity.to_string(), shown, "{text}");
        }
        for bad in ["", "m", "1.2.3", "1x", "1Gii", "--1", "1e", ".", "1 Gi"] {
            assert!(Quantity::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn amounts_are_compared_however_they_are_written() {
        let of = |text| Quantity::parse(text).expect("a quantity");
        assert_eq!(of("1"), of("1000m"));
        assert_eq!(of("1Gi"), of("1073741824"));
        assert!(of("999m") < of("1"));
        assert_eq!(of("500m").plus(of("1")).to_string(), "1500m");
        assert_eq!(of("1Gi").minus(of("512Mi")).to_string(), "512Mi");
        assert_eq!(
            of("99999999999999999999E").plus(of("1")),
            of("9223372036854775807")
        );
    }
}
