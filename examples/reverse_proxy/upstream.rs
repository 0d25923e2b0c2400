//! [`Upstream`]: the service that asks another server.
//!
//! 1. Every request has a connection of its own. One that was kept open can turn out to be closed when it is used
//!    again, and then there is only the choice between a needless failure and sending the request a second time.
//! 2. A request is sent once. If there is no answer, the client gets a 502.
//! 3. All fields are passed on, `Host` included, except those of the hop (RFC 9110 §7.6.1); `Via` is added (§7.6.3).
//! 4. Bodies are streamed both ways.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{
    CONNECTION, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::{BoxError, interim};

/// Streamed from the upstream, or written here.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

/// Forwards requests to one server.
#[derive(Debug, Clone)]
pub(crate) struct Upstream {
    authority: HeaderValue,
    /// `host:port`, to connect to.
    address: Arc<str>,
}

impl Upstream {
    /// # Errors
    ///
    /// If `uri` is anything but `http://HOST[:PORT]`.
    pub(crate) fn new(uri: &Uri) -> Result<Self, BoxError> {
        let (Some(authority), "/" | "", None) = (uri.authority(), uri.path(), uri.query()) else {
            return Err(format!("--upstream {uri}: not of the form http://HOST[:PORT]").into());
        };
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err(format!("--upstream {uri}: only http is spoken").into());
        }
        let port = authority.port_u16().unwrap_or(80);
        Ok(Self {
            authority: HeaderValue::from_str(authority.as_str())?,
            address: format!("{}:{port}", authority.host()).into(),
        })
    }

    async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let line = format!("{} {}", request.method(), request.uri());
        match self.forward(request).await {
            Ok(response) => response.map(Either::Left),
            Err(error) => {
                eprintln!("{line}: {error}");
                bad_gateway()
            }
        }
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, BoxError> {
        interim::pass_on(&mut request); // looks at the client's version
        self.address_to_origin(&mut request)?;
        let socket = TcpStream::connect(&*self.address).await?;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        // What it fails with, the sender or the reader of the body is told as well.
        tokio::spawn(connection);
        Ok(sender.send_request(request).await?)
    }

    /// Makes a request that came to this server one that goes to the next.
    fn address_to_origin(&self, request: &mut Request<Incoming>) -> Result<(), BoxError> {
        // A target in absolute form overrules the field (RFC 9112 §3.2.2); HTTP/1.0 may have neither.
        let host = match request.uri().authority() {
            Some(authority) => Some(HeaderValue::from_str(authority.as_str())?),
            None => None,
        };
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or(PathAndQuery::from_static("/")));
        *request.version_mut() = Version::HTTP_11;

        let fields = request.headers_mut();
        remove_fields_of_the_hop(fields);
        if let Some(host) = host {
            fields.insert(HOST, host);
        } else {
            fields.entry(HOST).or_insert_with(|| self.authority.clone());
        }
        fields.append(VIA, HeaderValue::from_static("1.1 tower-pgcache"));
        Ok(())
    }
}

impl Service<Request<Incoming>> for Upstream {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let upstream = self.clone();
        Box::pin(async { Ok(upstream.answer(request).await) })
    }
}

fn bad_gateway() -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from("the upstream did not answer\n")));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

/// Removes what concerns one connection alone (RFC 9110 §7.6.1): the fields that `Connection` lists, and those
/// that are known to be of this kind.
pub(crate) fn remove_fields_of_the_hop(fields: &mut HeaderMap) {
    let listed: Vec<HeaderName> = fields
        .get_all(CONNECTION)
        .into_iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let known = [
        CONNECTION,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    for name in listed.iter().chain(&known) {
        fields.remove(name);
    }
}
