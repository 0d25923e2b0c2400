//! One candidate behind a port of 127.0.0.1, for as long as standard input is open.

use std::io::{Read, Write};

use tokio::net::TcpListener;

use crate::Error;
use crate::app::App;
use crate::options::Serve;

/// What the line that names the port begins with.
pub(crate) const LISTENING: &str = "listening on ";

pub(crate) async fn serve(options: Serve) -> Result<(), Error> {
    std::thread::spawn(end_with_the_driver);
    let app = App::new(options.size);
    let router = options.candidate.router(&app, &options.store).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{LISTENING}{}", listener.local_addr()?)?;
    stdout.flush()?;
    axum::serve(listener, router.merge(app.calls())).await?;
    Ok(())
}

/// The driver holds the other end, and lets go of it however it ends.
fn end_with_the_driver() {
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(0);
}
