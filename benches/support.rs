//! What the benchmarks share: medians with their spread, and tables.

use std::time::Duration;

/// Measured times of one variant.
#[derive(Debug, Default, Clone)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e6);
    }

    /// The times of this series less those of the other, round by round. Both were taken in the same rounds.
    pub(crate) fn less(&self, other: &Self) -> Self {
        Self(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(ours, theirs)| ours - theirs)
                .collect(),
        )
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// In microseconds, interpolated between neighbours.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return f64::NAN;
        };
        let place = share * last as f64;
        let low = place.floor() as usize;
        let high = (low + 1).min(last);
        sorted[low] + (sorted[high] - sorted[low]) * (place - low as f64)
    }
}

/// Prints a table of all series in `unit` (how many microseconds it has, and its name); the ratios are to the first.
pub(crate) fn print(title: &str, unit: (f64, &str), rows: &[(&str, &Series)]) {
    let count = rows.first().map_or(0, |(_, series)| series.0.len());
    let reference = rows.first().map_or(f64::NAN, |(_, series)| series.median());
    println!("\n{title} ({}, {count} rounds)", unit.1);
    println!(
        "{:<46} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "", "median", "25 %", "75 %", "least", "ratio"
    );
    for (name, series) in rows {
        let [median, low, high, least] =
            [0.5, 0.25, 0.75, 0.0].map(|share| series.quantile(share) / unit.0);
        let ratio = series.median() / reference;
        println!("{name:<46} {median:>9.3} {low:>9.3} {high:>9.3} {least:>9.3} {ratio:>7.2}");
    }
}
