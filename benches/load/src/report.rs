//! The table: medians over the rounds.

use crate::candidates::Candidate;
use crate::wrk::Figures;

/// What one candidate did.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) candidate: Candidate,
    /// One per round, unless it failed.
    pub(crate) rounds: Vec<Figures>,
    /// While it was under load, in all rounds.
    pub(crate) handler_calls: u64,
    /// Why there are no more rounds.
    pub(crate) failure: Option<String>,
}

/// A table in Markdown, and below it what went wrong.
pub(crate) fn table(runs: &[Run]) -> String {
    let bare = runs.iter().find(|run| run.candidate == Candidate::Bare);
    let mut table = String::from(
        "| candidate | requests/s | ratio to bare | p50 µs | p99 µs | handler calls | failed requests |\n\
         |---|--:|--:|--:|--:|--:|--:|\n",
    );
    table.extend(runs.iter().map(|run| run.row(bare)));
    let failures = runs
        .iter()
        .filter_map(|run| Some((run.candidate.name(), run.failure.as_ref()?)));
    table.extend(failures.map(|(name, failure)| format!("\n{name}: {failure}\n")));
    table
}

impl Run {
    fn row(&self, bare: Option<&Self>) -> String {
        let median_of = |figure: fn(&Figures) -> f64| {
            median(self.rounds.iter().map(figure)).map_or("–".to_owned(), |m| format!("{m:.0}"))
        };
        let ratio = bare.and_then(|bare| median(self.ratios(bare)));
        let failures: u64 = self.rounds.iter().map(|figures| figures.failures).sum();
        format!(
            "| {} | {} | {} | {} | {} | {} | {failures} |\n",
            self.candidate.name(),
            median_of(|figures| figures.requests_per_second),
            ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            median_of(|figures| figures.p50),
            median_of(|figures| figures.p99),
            self.handler_calls,
        )
    }

    /// Round by round: what slows a round down mostly slows down all of it.
    fn ratios(&self, bare: &Self) -> impl Iterator<Item = f64> {
        let pairs = self.rounds.iter().zip(&bare.rounds);
        pairs.map(|(own, bare)| own.requests_per_second / bare.requests_per_second)
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[upper]),
        _ => Some(f64::midpoint(values[upper - 1], values[upper])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(candidate: Candidate, rates: &[f64], failure: Option<&str>) -> Run {
        let figures = |rate: &f64| Figures {
            requests_per_second: *rate,
            failures: 0,
            p50: 10.0,
            p99: 20.0,
        };
        Run {
            candidate,
            rounds: rates.iter().map(figures).collect(),
            handler_calls: 3,
            failure: failure.map(str::to_owned),
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn ratios_are_those_of_a_round() {
        let bare = run(Candidate::Bare, &[100.0, 10.0, 1.0], None);
        let cached = run(Candidate::PgcacheStrict, &[50.0, 5.0, 2.0], None);
        let row = "| pgcache-strict | 5 | 0.50 | 10 | 20 | 3 | 0 |";
        assert!(table(&[bare, cached]).contains(row));
    }

    #[test]
    fn what_failed_is_said() {
        let table = table(&[run(Candidate::Bare, &[], Some("no port"))]);
        assert!(table.contains("| bare | – | – | – | – | 3 | 0 |"));
        assert!(table.ends_with("\nbare: no port\n"));
    }
}
