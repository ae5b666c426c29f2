//! Kubernetes quantities (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>) as
//! whole thousandths, rounded up.

/// `100m` is 100, `2` is 2000, `1Ki` is 1,024,000. `None`: it is no quantity, or negative.
pub(crate) fn milli(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // number * 10^-scale, then the suffix: multiplier * 10^power.
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = i32::try_from(fraction.len()).ok()?;
    let (multiplier, power) = multiplier(suffix)?;
    let value = digits.checked_mul(multiplier)?;
    let power = power + 3 - scale;
    let ten = 10u128.checked_pow(power.unsigned_abs());
    if power >= 0 {
        value.checked_mul(ten?)
    } else {
        // Smaller than any unit that there is: one thousandth, unless it is nothing.
        Some(ten.map_or(u128::from(value > 0), |ten| value.div_ceil(ten)))
    }
}

fn multiplier(suffix: &str) -> Option<(u128, i32)> {
    Some(match suffix {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let exponent: i32 = exponent.parse().ok()?;
            // More is far beyond any machine.
            let exponent = (-30..=30).contains(&exponent).then_some(exponent)?;
            (1, exponent)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::milli;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(1_000)),
            ("100m", Some(100)),
            ("0.1", Some(100)),
            (".5", Some(500)),
            ("1.", Some(1_000)),
            ("+2", Some(2_000)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("128974848", Some(128_974_848_000)),
            ("129e6", Some(129_000_000_000)),
            ("129E6", Some(129_000_000_000)),
            ("1e-3", Some(1)),
            ("129M", Some(129_000_000_000)),
            ("123Mi", Some(128_974_848_000)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("1n", Some(1)),
            ("1001u", Some(2)),
            ("-1", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("m", None),
            ("1 Gi", None),
            ("1Q", None),
            ("1e99", None),
            ("99999999999999999999999999999999999999999", None),
        ] {
            assert_eq!(milli(text), expected, "{text:?}");
        }
    }
}
