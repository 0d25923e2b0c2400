use std::fmt;

/// Why there is no database. The message is complete: it names the causes and says what to do.
#[derive(Clone)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// `doing` and the whole chain of causes; `tokio_postgres` keeps the interesting part in the source.
    pub(crate) fn caused(doing: &str, cause: &dyn std::error::Error) -> Self {
        let mut message = format!("{doing}: {cause}");
        let mut next = cause.source();
        while let Some(source) = next {
            message.push_str(&format!(": {source}"));
            next = source.source();
        }
        Self(message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// As [`Display`](fmt::Display), because this is what a `main` that returns the error prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}
