//! The command line, for the person who runs `drive` and for `drive`, which runs `serve`.

use std::str::FromStr;

use crate::Error;
use crate::candidates::Candidate;

/// What to measure.
#[derive(Debug)]
pub(crate) struct Drive {
    pub(crate) rounds: usize,
    pub(crate) seconds: u64,
    /// Bytes of a body.
    pub(crate) size: usize,
    pub(crate) candidates: Vec<Candidate>,
}

impl Drive {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Error> {
        let mut options = Self {
            rounds: 5,
            seconds: 3,
            size: 1024,
            candidates: Candidate::ALL.to_vec(),
        };
        while let Some(name) = arguments.next() {
            match name.as_str() {
                "--rounds" => options.rounds = value(&name, arguments.next())?,
                "--seconds" => options.seconds = value(&name, arguments.next())?,
                "--size" => options.size = value(&name, arguments.next())?,
                "--only" => {
                    let names: String = value(&name, arguments.next())?;
                    options.candidates =
                        names.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                _ => return Err(unknown(&name, "--rounds, --seconds, --size, --only")),
            }
        }
        if options.rounds == 0 || options.seconds == 0 {
            return Err("--rounds and --seconds have to be at least 1".into());
        }
        Ok(options)
    }

    /// The command that does the same again.
    pub(crate) fn command(&self) -> String {
        let names: Vec<_> = self.candidates.iter().map(|c| c.name()).collect();
        let only = match self.candidates[..] == Candidate::ALL {
            true => String::new(),
            false => format!(" --only {}", names.join(",")),
        };
        format!(
            "benches/load/run --rounds {} --seconds {} --size {}{only}",
            self.rounds, self.seconds, self.size
        )
    }
}

/// What to serve.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) candidate: Candidate,
    /// Bytes of a body.
    pub(crate) size: usize,
    /// Where the store is, for a candidate that has one.
    pub(crate) store: String,
}

impl Serve {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Error> {
        Ok(Self {
            candidate: value("candidate", arguments.next())?,
            size: value("size", arguments.next())?,
            store: arguments.next().unwrap_or_default(),
        })
    }

    /// What [`parse`](Self::parse) reads.
    pub(crate) fn arguments(&self) -> [String; 4] {
        [
            "serve".to_owned(),
            self.candidate.name().to_owned(),
            self.size.to_string(),
            self.store.clone(),
        ]
    }
}

fn value<T>(name: &str, value: Option<String>) -> Result<T, Error>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    let value = value.ok_or_else(|| format!("{name} needs a value"))?;
    value
        .parse()
        .map_err(|e| format!("{name} {value}: {e}").into())
}

fn unknown(name: &str, known: &str) -> Error {
    format!("unknown argument {name}; known: {known}").into()
}
