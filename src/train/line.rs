//! The line that an epoch of training prints: what matters most first, as much of it as the terminal is wide.

use std::fmt::Write;

use terminal_size::{Width, terminal_size_of};

/// Columns of a log that is no terminal.
const LOG: usize = 120;

/// A part of the line, always equally wide as far as its numbers allow.
struct Field {
    text: String,
    /// Parts of lower rank go first where there is no room.
    rank: u8,
}

/// A line under construction.
#[derive(Default)]
pub(super) struct Line {
    fields: Vec<Field>,
    alerts: Vec<String>,
}

impl Line {
    /// Adds a part on the right, of a rank: 0 stays longest.
    pub fn field(&mut self, rank: u8, text: String) {
        self.fields.push(Field { text, rank });
    }

    /// Adds what is said however wide the line gets, after all else.
    pub fn alert(&mut self, text: String) {
        self.alerts.push(text);
    }

    /// The line in at most `columns`, alerts aside.
    pub fn fit(&self, columns: usize) -> String {
        let width = |rank: u8| {
            let kept = self.fields.iter().filter(|f| f.rank <= rank);
            kept.map(|f| f.text.chars().count() + SEPARATOR.len()).sum::<usize>().saturating_sub(SEPARATOR.len())
        };
        let least = self.fields.iter().map(|f| f.rank).min().unwrap_or(0);
        let ranks = self.fields.iter().map(|f| f.rank).filter(|rank| width(*rank) <= columns);
        let kept = ranks.max().unwrap_or(least);
        let fields = self.fields.iter().filter(|f| f.rank <= kept).map(|f| &f.text);
        let mut line = String::new();
        for text in fields.chain(&self.alerts) {
            let separator = if line.is_empty() { "" } else { SEPARATOR };
            write!(line, "{separator}{text}").expect("text");
        }
        line
    }
}

const SEPARATOR: &str = "  ";

/// How wide stdout is.
pub(super) fn columns() -> usize {
    terminal_size_of(std::io::stdout()).map_or(LOG, |(Width(columns), _)| columns.into())
}

/// `value` with `digits` significant ones where it is at least one, and so many decimals but one below.
pub(super) fn short(value: f64, digits: usize) -> String {
    let before = if value.abs() < 1.0 { 1 } else { value.abs().log10().floor() as usize + 1 };
    if value.is_finite() { format!("{value:.*}", digits.saturating_sub(before)) } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_significant_digits_and_widths() {
        let values = [0.0, 0.0314, 5.27, 52.69, 526.9, 5269.4, -0.5, f64::NAN, 0.9999, 9.999];
        let want = ["0.00", "0.03", "5.27", "52.7", "527", "5269", "-0.50", "NaN", "1.00", "10.00"];
        assert_eq!(values.map(|v| short(v, 3)), want);
    }

    #[test]
    fn what_matters_least_goes_first_and_an_alert_stays() {
        let mut line = Line::default();
        for (rank, text) in [(0, "epoch 1/2"), (1, "reward 0.5"), (3, "± 0.1"), (2, "ETA 1m00s"), (4, "flat 0/8")] {
            line.field(rank, text.into());
        }
        let all = "epoch 1/2  reward 0.5  ± 0.1  ETA 1m00s  flat 0/8";
        assert_eq!([line.fit(usize::MAX), line.fit(all.chars().count())], [all, all]);
        assert_eq!(line.fit(all.chars().count() - 1), "epoch 1/2  reward 0.5  ± 0.1  ETA 1m00s");
        assert_eq!(line.fit(32), "epoch 1/2  reward 0.5  ETA 1m00s");
        assert_eq!(line.fit(0), "epoch 1/2");
        line.alert("STEP SKIPPED: the loss is NaN".into());
        assert_eq!(line.fit(12), "epoch 1/2  STEP SKIPPED: the loss is NaN");
    }
}
