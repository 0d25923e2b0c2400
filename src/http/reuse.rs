//! May a stored answer be served to this request? (RFC 9111 §4)
//!
//! 1. Fresh and valid: yes, unless the request says that it wants another one and is obeyed.
//! 2. Stale and valid: while a background fill runs (RFC 5861 §3), or as far as the request accepts it, unless
//!    the answer forbids it.
//! 3. Invalidated is not stale: what a commit has invalidated is served under none of these. It may be
//!    revalidated, and a route may ask for it expressly.
//! 4. On an error of the inner service a stale and valid answer may do (RFC 5861 §4).

use std::time::Duration;

use super::cache_control::{CacheControl, RequestDirectives};

/// What is known of a stored answer when a request meets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) age: Duration,
    /// How long it is still fresh; zero if it is stale.
    pub(crate) fresh_for: Duration,
    /// How long it has been stale; zero if it is fresh.
    pub(crate) stale_for: Duration,
    /// Whether nothing that it depends on has changed.
    pub(crate) valid: bool,
}

impl Condition {
    /// What becomes of it as time goes by.
    pub(crate) fn later(self, elapsed: Duration) -> Self {
        Self {
            age: self.age.saturating_add(elapsed),
            fresh_for: self.fresh_for.saturating_sub(elapsed),
            stale_for: self
                .stale_for
                .saturating_add(elapsed.saturating_sub(self.fresh_for)),
            valid: self.valid,
        }
    }
}

/// What the route says about stale answers; what the answer says goes before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StaleRules {
    pub(crate) while_revalidate: Option<Duration>,
    pub(crate) if_error: Option<Duration>,
}

/// What to do with a stored answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    Serve,
    /// Serve it, and let a background fill replace it.
    ServeAndRefresh,
    /// Ask the inner service, with the stored validators if there are any.
    Revalidate,
}

/// `answer`: what the stored answer says, which is read only if it matters.
pub(crate) fn decide(
    stored: Condition,
    answer: impl FnOnce() -> CacheControl,
    request: &RequestDirectives,
    rules: StaleRules,
) -> Reuse {
    if !stored.valid || request.no_cache {
        return Reuse::Revalidate;
    }
    let seconds = Duration::from_secs;
    // RFC 9111 §5.2.1.1, §5.2.1.3
    if request.max_age.is_some_and(|max| stored.age > seconds(max))
        || request
            .min_fresh
            .is_some_and(|min| stored.fresh_for < seconds(min))
    {
        return Reuse::Revalidate;
    }
    if !stored.fresh_for.is_zero() {
        return Reuse::Serve;
    }
    let answer = answer();
    if answer.forbids_stale() {
        return Reuse::Revalidate;
    }
    // RFC 9111 §5.2.1.2; s-maxage forbids what the answer itself does not ask for (§5.2.2.10)
    if answer.s_maxage.is_none()
        && request
            .max_stale
            .is_some_and(|max| stored.stale_for <= seconds(max))
    {
        return Reuse::Serve;
    }
    if stored.stale_for < while_revalidate(&answer, rules) {
        return Reuse::ServeAndRefresh;
    }
    Reuse::Revalidate
}

/// RFC 5861 §3.
fn while_revalidate(answer: &CacheControl, rules: StaleRules) -> Duration {
    answer
        .stale_while_revalidate
        .map(Duration::from_secs)
        .or(rules.while_revalidate)
        .unwrap_or_default()
}

/// Whether a stored answer may stand in for an error (RFC 5861 §4).
pub(crate) fn may_stand_in(stored: Condition, answer: &CacheControl, rules: StaleRules) -> bool {
    stored.valid && !answer.forbids_stale() && stored.stale_for < if_error(answer, rules)
}

/// RFC 5861 §4; with `s-maxage` only if the answer itself asks for it.
fn if_error(answer: &CacheControl, rules: StaleRules) -> Duration {
    let by_route = rules.if_error.filter(|_| answer.s_maxage.is_none());
    answer
        .stale_if_error
        .map(Duration::from_secs)
        .or(by_route)
        .unwrap_or_default()
}

/// How long after it has become stale an answer can still be of use.
pub(crate) fn useful_when_stale(answer: &CacheControl, rules: StaleRules) -> Duration {
    if answer.forbids_stale() {
        return Duration::ZERO;
    }
    while_revalidate(answer, rules).max(if_error(answer, rules))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn fresh(age: u64, left: u64) -> Condition {
        Condition {
            age: S(age),
            fresh_for: S(left),
            stale_for: Duration::ZERO,
            valid: true,
        }
    }

    fn stale(by: u64) -> Condition {
        Condition {
            age: S(100 + by),
            fresh_for: Duration::ZERO,
            stale_for: S(by),
            valid: true,
        }
    }

    fn answer(directives: &str) -> CacheControl {
        let mut headers = http::HeaderMap::new();
        headers.insert("cache-control", directives.parse().expect("a field value"));
        CacheControl::of(&headers)
    }

    fn request(directives: &str) -> RequestDirectives {
        let mut headers = http::HeaderMap::new();
        headers.insert("cache-control", directives.parse().expect("a field value"));
        RequestDirectives::of(&headers)
    }

    #[test]
    fn time_makes_fresh_answers_old_and_stale() {
        let later = fresh(1, 10).later(S(4));
        assert_eq!(later, fresh(5, 6));
        let stale = later.later(S(8));
        assert_eq!(
            (stale.age, stale.fresh_for, stale.stale_for),
            (S(13), S(0), S(2))
        );
        let for_ever = stale.later(Duration::MAX);
        assert_eq!(
            (for_ever.age, for_ever.stale_for),
            (Duration::MAX, Duration::MAX)
        );
    }

    #[test]
    fn a_fresh_answer_is_served_unless_the_request_wants_another() {
        let decide = |stored, says: &str| {
            decide(
                stored,
                || answer("x"),
                &request(says),
                StaleRules::default(),
            )
        };
        assert_eq!(decide(fresh(10, 50), ""), Reuse::Serve);
        assert_eq!(decide(fresh(10, 50), "max-age=10"), Reuse::Serve);
        assert_eq!(decide(fresh(10, 50), "max-age=9"), Reuse::Revalidate);
        assert_eq!(decide(fresh(10, 50), "min-fresh=50"), Reuse::Serve);
        assert_eq!(decide(fresh(10, 50), "min-fresh=51"), Reuse::Revalidate);
        assert_eq!(decide(fresh(10, 50), "no-cache"), Reuse::Revalidate);
        assert_eq!(decide(stale(5), "max-stale=5"), Reuse::Serve);
        assert_eq!(decide(stale(5), "max-stale"), Reuse::Serve);
        assert_eq!(decide(stale(6), "max-stale=5"), Reuse::Revalidate);
    }

    #[test]
    fn stale_answers_are_served_while_a_refresh_runs_if_somebody_asked_for_it() {
        let nobody = RequestDirectives::default();
        let route = StaleRules {
            while_revalidate: Some(S(10)),
            if_error: Some(S(20)),
        };
        assert_eq!(
            decide(stale(5), || answer("x"), &nobody, StaleRules::default()),
            Reuse::Revalidate
        );
        assert_eq!(
            decide(stale(5), || answer("x"), &nobody, route),
            Reuse::ServeAndRefresh
        );
        assert_eq!(
            decide(stale(10), || answer("x"), &nobody, route),
            Reuse::Revalidate
        );
        let says = answer("s-maxage=1, stale-while-revalidate=30");
        assert_eq!(
            decide(stale(29), || says.clone(), &nobody, route),
            Reuse::ServeAndRefresh
        );
        for forbids in ["must-revalidate", "proxy-revalidate", "no-cache"] {
            let says = answer(&format!(
                "{forbids}, stale-while-revalidate=30, stale-if-error=30"
            ));
            assert_eq!(
                decide(stale(1), || says.clone(), &request("max-stale"), route),
                Reuse::Revalidate,
                "{forbids}"
            );
            assert!(!may_stand_in(stale(1), &says, route), "{forbids}");
        }
        assert!(may_stand_in(stale(19), &answer("x"), route));
        assert!(!may_stand_in(stale(20), &answer("x"), route));
        assert!(!may_stand_in(stale(1), &answer("s-maxage=1"), route));
        assert!(may_stand_in(
            stale(1),
            &answer("s-maxage=1, stale-if-error=5"),
            route
        ));
    }

    #[test]
    fn what_was_invalidated_is_served_under_none_of_this() {
        let route = StaleRules {
            while_revalidate: Some(S(10)),
            if_error: Some(S(20)),
        };
        for stored in [fresh(1, 50), stale(1)] {
            let invalid = Condition {
                valid: false,
                ..stored
            };
            assert_eq!(
                decide(
                    invalid,
                    || answer("stale-while-revalidate=99"),
                    &request("max-stale"),
                    route
                ),
                Reuse::Revalidate
            );
            assert!(!may_stand_in(invalid, &answer("stale-if-error=99"), route));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn time_never_makes_an_answer_more_usable(
            lifetime in 0u64..50, at in 0u64..100, later in 0u64..100,
            says in "(x|must-revalidate|s-maxage=5|stale-while-revalidate=20)",
            asks in "(x|max-stale|max-stale=10|max-age=30|min-fresh=10|no-cache)",
        ) {
            let decided = |passed: u64| {
                let stored = Condition {
                    age: S(passed),
                    fresh_for: S(lifetime.saturating_sub(passed)),
                    stale_for: S(passed.saturating_sub(lifetime)),
                    valid: true,
                };
                match decide(stored, || answer(&says), &request(&asks), StaleRules::default()) {
                    Reuse::Serve => 2,
                    Reuse::ServeAndRefresh => 1,
                    Reuse::Revalidate => 0,
                }
            };
            prop_assert!(decided(at + later) <= decided(at));
        }
    }
}
