//! Medians, and tables in Markdown.

/// What the candidates did: a value per round, the first candidate is what the others are compared with.
pub(crate) type Rounds = Vec<(String, Vec<Vec<f64>>)>;

/// A row for each candidate; in each column the median over the rounds, and the median ratio to the first
/// candidate in the same round.
pub(crate) fn table(unit: &str, columns: &[String], rows: &Rounds) -> String {
    let mut table = format!(
        "| {unit} | {} |\n|---|{}\n",
        columns.join(" | "),
        "--:|".repeat(columns.len())
    );
    for (name, cells) in rows {
        table += &format!("| {name} |");
        for (column, values) in cells.iter().enumerate() {
            let first = &rows[0].1[column];
            // round by round: what slows a round down mostly slows down all of it
            let ratios = values.iter().zip(first).map(|(own, first)| own / first);
            table += &format!(
                " {} ({:.2}) |",
                readable(median(values.iter().copied())),
                median(ratios)
            );
        }
        table += "\n";
    }
    table
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[upper],
        _ => f64::midpoint(values[upper - 1], values[upper]),
    }
}

/// Three digits are enough.
fn readable(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
