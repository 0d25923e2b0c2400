//! The command line.

use std::time::Duration;

/// A part of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Writers,
    Statements,
    Hits,
}

impl Section {
    const ALL: [(&str, Self); 3] = [
        ("writers", Self::Writers),
        ("statements", Self::Statements),
        ("hits", Self::Hits),
    ];
}

/// How long to measure, and what.
#[derive(Debug)]
pub(crate) struct Options {
    /// How often each candidate has its turn.
    pub(crate) rounds: usize,
    /// How long a turn is.
    pub(crate) seconds: f64,
    only: Option<String>,
}

impl Options {
    /// Without `--bench`, which `cargo bench` gives and `cargo test --benches` does not, the defaults are so short
    /// that the figures mean nothing.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments: Vec<_> = arguments.collect();
        let all = arguments.len();
        arguments.retain(|argument| argument != "--bench");
        let in_earnest = arguments.len() < all;
        let mut options = Self {
            rounds: if in_earnest { 3 } else { 1 },
            seconds: if in_earnest { 2.0 } else { 0.05 },
            only: None,
        };
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().unwrap_or_default();
            let wrong = |what: &str| format!("{name} {value:?}: {what}");
            match name.as_str() {
                "--rounds" => {
                    options.rounds = value.parse().map_err(|_| wrong("not a number"))?;
                }
                "--seconds" => {
                    options.seconds = value.parse().map_err(|_| wrong("not a number"))?;
                }
                "--only" if Section::ALL.iter().any(|(known, _)| *known == value) => {
                    options.only = Some(value);
                }
                _ => {
                    return Err(wrong(
                        "known are --rounds, --seconds, --only writers|statements|hits",
                    ));
                }
            }
        }
        if options.rounds == 0 || !(options.seconds > 0.0 && options.seconds < 1e6) {
            return Err("--rounds and --seconds have to be more than 0".to_owned());
        }
        Ok(options)
    }

    pub(crate) fn has(&self, section: Section) -> bool {
        let only = self.only.as_deref();
        Section::ALL
            .iter()
            .any(|(name, known)| *known == section && only.is_none_or(|only| only == *name))
    }

    pub(crate) fn turn(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// The command that does the same again.
    pub(crate) fn command(&self) -> String {
        let only = self.only.iter().map(|section| format!(" --only {section}"));
        format!(
            "cargo bench --bench invalidation -- --rounds {} --seconds {}{}",
            self.rounds,
            self.seconds,
            only.collect::<String>()
        )
    }
}
