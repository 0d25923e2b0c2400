use std::net::SocketAddr;
use std::time::Duration;

/// What the command line says.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) database_url: Option<String>,
    /// None: strict.
    pub(crate) max_staleness: Option<Duration>,
    /// None: as much as is the default.
    pub(crate) memory: Option<usize>,
    /// Without, the cache serves what is stale: to see that somebody notices.
    pub(crate) watched: bool,
}

impl Options {
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            listen: ([127, 0, 0, 1], 3000).into(),
            database_url: None,
            max_staleness: None,
            memory: None,
            watched: true,
        };
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--listen" => options.listen = number(&name, &value()?)?,
                "--database-url" => options.database_url = Some(value()?),
                "--max-staleness" => {
                    let milliseconds = number(&name, &value()?)?;
                    options.max_staleness = Some(Duration::from_millis(milliseconds));
                }
                "--memory" => options.memory = Some(number(&name, &value()?)?),
                "--unwatched" => options.watched = false,
                other => {
                    return Err(format!(
                        "unknown argument {other}; known: --once, --listen ADDR, --database-url URL, \
                         --max-staleness MS, --memory BYTES, --unwatched"
                    ));
                }
            }
        }
        Ok(options)
    }
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|e| format!("{name} {value}: {e}"))
}
