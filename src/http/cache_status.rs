//! `Cache-Status` (RFC 9211): what the cache did with a request, and why.

use std::fmt::Write;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};

use super::fields::digits;
use super::reuse::Condition;
use super::storable::NotStored;

pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request was neither looked up nor its answer stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bypass {
    /// The method is neither GET nor HEAD, or a field such as `X-HTTP-Method-Override` asks for another one.
    Method,
    /// The route says so.
    Route,
    /// The route's `bypass_if` says so.
    Condition,
    /// The settings of the layer are wrong; the log says how.
    Misconfigured,
    /// The request carries credentials and the route does not say who shares its answers.
    Credentials,
    /// The request carries credentials and nobody has vouched for it.
    NoWitness,
    /// A tenant is configured and the request has none.
    NoTenant,
    /// The route's answers are per principal and the request has none.
    NoPrincipal,
    /// A path parameter that the route depends on is missing from the path.
    NoEntity,
    /// `Host` is missing its meaning: not text, or given several times.
    Authority,
    /// The request asks to switch protocols.
    Upgrade,
    /// A GET or HEAD that has a body: the answer may depend on it.
    Body,
    /// The cache was closed, or runs outside a Tokio runtime.
    Closed,
    /// The cache is switched off.
    Disabled,
    /// The store is not reachable, not ready or too slow.
    Store,
}

impl Bypass {
    /// The reason as it stands in `Cache-Status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Route => "route",
            Self::Condition => "bypass-if",
            Self::Misconfigured => "misconfigured",
            Self::Credentials => "credentials",
            Self::NoWitness => "no-witness",
            Self::NoTenant => "no-tenant",
            Self::NoPrincipal => "no-principal",
            Self::NoEntity => "no-entity",
            Self::Authority => "authority",
            Self::Upgrade => "upgrade",
            Self::Body => "body",
            Self::Closed => "closed",
            Self::Disabled => "disabled",
            Self::Store => "store",
        }
    }

    /// What would change it, where it may come as a surprise.
    pub(crate) const fn mend(self) -> Option<&'static str> {
        Some(match self {
            Self::Credentials => {
                "the request carries credentials; say who shares the answers of the route: shared_by_tenant(), \
                 per_principal() or shared_by_everyone() (cookies: ignore_cookies([…]) or session_cookies([…]))"
            }
            Self::NoWitness => {
                "the request carries credentials and nobody has vouched for it: in axum the layer added last runs \
                 first, so add the cache before the authentication layer"
            }
            Self::NoTenant => {
                "the request has no tenant: in axum the layer added last runs first, so add the cache before the \
                 layer that finds out the tenant; where all tenants have the same answers, say shared_by_everyone()"
            }
            Self::NoPrincipal => {
                "the request has no principal: in axum the layer added last runs first, so add the cache before the \
                 authentication layer"
            }
            Self::NoEntity => {
                "a path parameter that entity(…) names is not in the path; use a parameter of the route"
            }
            Self::Method
            | Self::Route
            | Self::Condition
            | Self::Misconfigured
            | Self::Authority
            | Self::Upgrade
            | Self::Body
            | Self::Closed
            | Self::Disabled
            | Self::Store => return None,
        })
    }
}

/// Why the inner service was asked (RFC 9211 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Nothing was stored.
    Miss,
    /// What was stored is stale, or a commit has invalidated it.
    Stale,
    /// The request wanted another answer than the stored one.
    Request,
    /// A POST whose answer is one for later GETs.
    Method,
}

impl Forward {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Miss => "uri-miss",
            Self::Stale => "stale",
            Self::Request => "request",
            Self::Method => "method",
        }
    }
}

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheStatus {
    /// Answered from the store.
    Hit { condition: Condition },
    /// Answered from memory, since the store could not be asked.
    Unconfirmed { condition: Condition },
    /// Answered by what another request has had computed, on this instance or another (RFC 9211 §2.6).
    Collapsed { why: Forward },
    /// Answered by the inner service; the answer is being stored.
    Stored { why: Forward, status: StatusCode },
    /// Answered by the inner service; the answer is not stored.
    NotStored {
        why: Forward,
        status: StatusCode,
        reason: NotStored,
    },
    /// A stored answer in the place of an error, or of a 304 that was about another one.
    StandIn {
        why: Forward,
        status: Option<StatusCode>,
    },
    /// Passed through.
    Bypass { status: StatusCode, reason: Bypass },
    /// Nothing that the request would accept was stored, and it wanted nothing else.
    OnlyIfCached,
}

impl CacheStatus {
    /// What is said of this cache. It is added as the last member: the one closest to the client (RFC 9211 §2).
    pub(crate) fn last_member(self) -> Option<HeaderValue> {
        match self {
            Self::Hit { condition } if condition.stale_for.is_zero() => {
                fresh_hit(condition.fresh_for.as_secs())
            }
            _ => HeaderValue::try_from(self.member()).ok(),
        }
    }

    /// All but a fresh hit.
    fn member(self) -> String {
        let mut member = String::from("pgcache");
        // writing to a String cannot fail
        let _ = match self {
            // negative if it is stale (RFC 9211 §2.4)
            Self::Hit { condition } => {
                write!(
                    member,
                    "; hit; ttl=-{}",
                    condition.stale_for.as_secs().max(1)
                )
            }
            Self::Unconfirmed { condition } => write!(
                member,
                "; hit; ttl={}; detail=store-down",
                condition.fresh_for.as_secs()
            ),
            Self::Collapsed { why } => write!(member, "; fwd={}; collapsed", why.as_str()),
            Self::Stored { why, status } => {
                write!(
                    member,
                    "; fwd={}; fwd-status={}; stored",
                    why.as_str(),
                    status.as_u16()
                )
            }
            Self::NotStored {
                why,
                status,
                reason,
            } => {
                let (why, reason) = (why.as_str(), reason.as_str());
                write!(
                    member,
                    "; fwd={why}; fwd-status={}; detail={reason}",
                    status.as_u16()
                )
            }
            Self::StandIn { why, status } => {
                let status = status.map(|status| format!("; fwd-status={}", status.as_u16()));
                let (why, status) = (why.as_str(), status.unwrap_or_default());
                write!(member, "; fwd={why}{status}; detail=stand-in")
            }
            Self::Bypass {
                status,
                reason: Bypass::Method,
            } => {
                write!(member, "; fwd=method; fwd-status={}", status.as_u16())
            }
            Self::Bypass { status, reason } => {
                write!(
                    member,
                    "; fwd=bypass; fwd-status={}; detail={}",
                    status.as_u16(),
                    reason.as_str()
                )
            }
            Self::OnlyIfCached => write!(member, "; detail=only-if-cached"),
        };
        member
    }
}

/// The most frequent one, without formatting.
fn fresh_hit(ttl: u64) -> Option<HeaderValue> {
    const BEGINNING: &[u8] = b"pgcache; hit; ttl=";
    let mut member = [0; BEGINNING.len() + 20];
    let mut buffer = [0; 20];
    let digits = digits(ttl, &mut buffer);
    let length = BEGINNING.len() + digits.len();
    member[..BEGINNING.len()].copy_from_slice(BEGINNING);
    member[BEGINNING.len()..length].copy_from_slice(digits);
    HeaderValue::from_bytes(&member[..length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const FRESH: Condition = Condition {
        age: Duration::ZERO,
        fresh_for: Duration::from_millis(1500),
        stale_for: Duration::ZERO,
        valid: true,
    };

    #[test]
    fn members_are_those_of_rfc_9211() {
        let (status, why) = (StatusCode::OK, Forward::Miss);
        let member = |s: CacheStatus| s.member();
        let fresh = CacheStatus::Hit { condition: FRESH };
        assert_eq!(fresh.last_member().expect("text"), "pgcache; hit; ttl=1");
        let stale = Condition {
            fresh_for: Duration::ZERO,
            stale_for: Duration::from_secs(7),
            ..FRESH
        };
        assert_eq!(
            member(CacheStatus::Hit { condition: stale }),
            "pgcache; hit; ttl=-7"
        );
        assert_eq!(
            member(CacheStatus::Unconfirmed { condition: FRESH }),
            "pgcache; hit; ttl=1; detail=store-down"
        );
        assert_eq!(
            member(CacheStatus::Collapsed { why }),
            "pgcache; fwd=uri-miss; collapsed"
        );
        assert_eq!(
            member(CacheStatus::Stored { why, status }),
            "pgcache; fwd=uri-miss; fwd-status=200; stored"
        );
        assert_eq!(
            member(CacheStatus::NotStored {
                why: Forward::Stale,
                status,
                reason: NotStored::SetCookie
            }),
            "pgcache; fwd=stale; fwd-status=200; detail=set-cookie"
        );
        assert_eq!(
            member(CacheStatus::StandIn {
                why: Forward::Stale,
                status: Some(StatusCode::BAD_GATEWAY)
            }),
            "pgcache; fwd=stale; fwd-status=502; detail=stand-in"
        );
        assert_eq!(
            member(CacheStatus::StandIn {
                why: Forward::Stale,
                status: None
            }),
            "pgcache; fwd=stale; detail=stand-in"
        );
        assert_eq!(
            member(CacheStatus::Bypass {
                status,
                reason: Bypass::NoTenant
            }),
            "pgcache; fwd=bypass; fwd-status=200; detail=no-tenant"
        );
        assert_eq!(
            member(CacheStatus::Bypass {
                status,
                reason: Bypass::Method
            }),
            "pgcache; fwd=method; fwd-status=200"
        );
    }
}
