//! Figures as text.

/// With three digits at least.
#[must_use]
pub fn number(value: f64) -> String {
    let decimals = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// A Markdown table, which docs/benchmarks.md can take as it is; the first line is its head, and all are of one length.
#[must_use]
pub fn markdown(mut lines: Vec<Vec<String>>) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max();
    let widths: Vec<usize> = (0..columns).filter_map(width).collect();
    let rule = widths.iter().map(|&width| "-".repeat(width)).collect();
    lines.insert(lines.len().min(1), rule);
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            text.push_str(&format!("| {cell:width$} "));
        }
        text.push_str("|\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_at_least() {
        assert_eq!([1.234, 12.34, 1234.4].map(number), ["1.23", "12.3", "1234"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let lines = [["a", "bb"], ["ccc", ""]].map(|line| line.map(str::to_owned).to_vec());
        assert_eq!(
            markdown(lines.to_vec()),
            "| a   | bb |\n| --- | -- |\n| ccc |    |\n"
        );
    }
}
