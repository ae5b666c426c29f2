//! The proof as text: columns as wide as what is in them.

/// One position, protocol and family over all its clients.
#[derive(Debug, Clone)]
pub struct Row {
    pub position: &'static str,
    pub protocol: String,
    pub replies: u32,
    pub requests: u32,
    /// Answers of each backend, in the legend's order.
    pub counts: Vec<u32>,
    /// Largest difference between two backends at any one client.
    pub spread: u32,
    /// Median of the clients' medians, in microseconds.
    pub p50_us: f64,
}

const HEADER: [&str; 6] = [
    "client",
    "protocol",
    "replies",
    "per backend",
    "spread",
    "p50",
];

pub fn draw(legend: &str, rows: &[Row]) -> String {
    let cells: Vec<[String; 6]> = rows.iter().map(Row::cells).collect();
    let width = |column: usize| {
        let longest = cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
        longest.max(HEADER[column].len())
    };
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    let line = |row: &[String]| {
        let padded =
            row.iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (text, width))| match column {
                    0 | 1 | 3 => format!("{text:<width$}"),
                    _ => format!("{text:>width$}"),
                });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    let mut lines = vec![
        legend.to_string(),
        String::new(),
        line(&HEADER.map(str::to_string)),
    ];
    lines.push(
        widths
            .iter()
            .map(|width| "-".repeat(*width))
            .collect::<Vec<_>>()
            .join("  "),
    );
    lines.extend(cells.iter().map(|row| line(row)));
    lines.join("\n") + "\n"
}

/// The middle value, the upper one of two; zero of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let counts = self.counts.iter().map(|count| {
            if *count == 0 {
                "-".to_string()
            } else {
                count.to_string()
            }
        });
        [
            self.position.to_string(),
            self.protocol.clone(),
            format!("{}/{}", self.replies, self.requests),
            counts.collect::<Vec<_>>().join(" "),
            self.spread.to_string(),
            format!("{:.0} us", self.p50_us),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_an_empty_count_is_a_dash() {
        let row = Row {
            position: "host process on a node",
            protocol: "HTTP/TCP IPv4".into(),
            replies: 59,
            requests: 60,
            counts: vec![30, 0, 29],
            spread: 1,
            p50_us: 87.4,
        };
        let text = draw("legend", &[row]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[4],
            "host process on a node  HTTP/TCP IPv4    59/60  30 - 29           1  87 us"
        );
        assert_eq!(lines[3].len(), lines[4].len());
    }

    #[test]
    fn the_median_is_the_middle_value() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(Vec::new()).abs() < f64::EPSILON);
    }
}
