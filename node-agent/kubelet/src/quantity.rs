//! Kubernetes quantities such as `250m` and `64Mi`.

/// The quantity times 1000, rounded up; `None` if the text is no quantity or does not fit. The grammar is that of
/// `k8s.io/apimachinery/pkg/api/resource`: a decimal number with an SI, binary or exponent suffix.
pub(crate) fn milli(text: &str) -> Option<i64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024_f64.powi(2),
        "Gi" => 1024_f64.powi(3),
        "Ti" => 1024_f64.powi(4),
        "Pi" => 1024_f64.powi(5),
        "Ei" => 1024_f64.powi(6),
        exponent => 10_f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let value = number.parse::<f64>().ok()? * factor * 1000.0;
    // Products such as 0.1 * 1000 may miss their integer by the last bit.
    let nearest = value.round();
    let value = if (value - nearest).abs() < 1e-6 * nearest.abs().max(1e-3) {
        nearest
    } else {
        value.ceil()
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "the range is checked"
    )]
    (value.abs() < i64::MAX as f64).then_some(value as i64)
}

/// The quantity in whole units, rounded up.
pub(crate) fn units(text: &str) -> Option<i64> {
    milli(text).map(|milli| milli.div_euclid(1000) + i64::from(milli.rem_euclid(1000) != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0.1", Some(100)),
            ("250m", Some(250)),
            ("2", Some(2000)),
            ("1.5", Some(1500)),
            ("1n", Some(1)),
            ("100u", Some(1)),
            ("64Mi", Some(67_108_864_000)),
            ("1e3", Some(1_000_000)),
            ("129M", Some(129_000_000_000)),
            ("", None),
            ("12x", None),
            ("Mi", None),
            ("99999E", None),
        ] {
            assert_eq!(milli(text), expected, "{text}");
        }
        assert_eq!(units("64Mi"), Some(67_108_864));
        assert_eq!(units("1m"), Some(1));
    }
}
