//! What is known of a fill before the inner service is called.

use std::sync::Arc;
use std::time::Duration;

use http::header::IF_MODIFIED_SINCE;
use http::{HeaderMap, Request};

use crate::engine::{Entry, Fill, Moment, Reservation};
use crate::http::cache_status::Forward;
use crate::http::conditional::{revalidation, take_conditionals};
use crate::http::partial::{Rest, completion};
use crate::http::reuse::may_stand_in;
use crate::http::storable::directives;
use crate::plan::{Read, Subject};

/// How a fill is asked for: what is known before the inner service is called.
pub(crate) struct Errand {
    pub(super) read: Read,
    pub(super) subject: Subject,
    /// What is stored, and may be revalidated or stand in for an error; as of `asked_at`.
    pub(super) stored: Option<Arc<Entry>>,
    pub(super) asked_at: Moment,
    /// Preconditions and ranges that the cache answers, taken out of the request.
    pub(super) conditionals: Option<HeaderMap>,
    pub(super) answers_conditionals: bool,
    /// Whether the request carries the stored validators.
    pub(super) revalidates: bool,
    /// The request's fields, for answers that vary.
    pub(super) fields: HeaderMap,
    pub(super) why: Forward,
    pub(super) no_store: bool,
    /// An answer to POST counts as fresh only if it says so itself.
    pub(super) explicit_only: bool,
    /// Whether what the handler reads from can tell what it has, once it was asked.
    pub(super) knows_its_source: Option<bool>,
    /// The request asks for the rest of this.
    pub(super) completes: Option<Beginning>,
}

/// A stored beginning of an answer.
pub(super) struct Beginning {
    pub(super) part: Arc<Entry>,
    /// How long the rest is.
    pub(super) missing: usize,
    /// The room for it.
    pub(super) room: Arc<Reservation>,
}

impl Errand {
    /// Right before the handler runs. Whether its answer can be stored, as far as that is known by then.
    pub(super) async fn look_at_source(&mut self, fill: &mut Fill) -> bool {
        if let (Some(replica), None) = (&self.read.policy.snapshot_from, self.knows_its_source) {
            self.knows_its_source = Some(fill.look_at(replica).await);
        }
        self.knows_its_source != Some(false)
    }

    /// The stored answer, if it may stand in for an error by now.
    pub(super) fn stand_in(&self) -> Option<Entry> {
        self.stand_in_after(Duration::ZERO)
    }

    /// The same, as of so much later.
    pub(super) fn stand_in_after(&self, time: Duration) -> Option<Entry> {
        let stored = self.stored.as_deref()?;
        let entry = stored.later(self.asked_at.elapsed().saturating_add(time));
        let says = directives(&entry.head.fields(), self.read.policy.targets());
        may_stand_in(entry.condition, &says, self.read.policy.stale).then_some(entry)
    }

    /// Asks for what is missing behind a stored beginning, if that may be stored as a whole and there is room for it. The client
    /// has no preconditions and wants no range: an inner layer that claims the request has to know.
    pub(super) fn complete(
        &mut self,
        part: Arc<Entry>,
        fill: &Fill,
        request: &mut HeaderMap,
    ) -> Option<()> {
        let limit = self.read.policy.body_limit();
        let Rest { fields, length } = completion(&part.head.fields(), limit)?;
        self.completes = Some(Beginning {
            part,
            missing: length,
            room: fill.reserve(length)?,
        });
        self.answers_conditionals = true;
        request.extend(fields);
        Some(())
    }
}

/// What the inner service is asked about a stored answer. Of one that a commit has invalidated a date says too
/// little: within the second that it names there may have been a change after the answer (RFC 9110 §8.8.2.2), and
/// only the handler's clock could tell.
fn validators(entry: &Entry) -> Option<HeaderMap> {
    let mut validators = revalidation(&entry.head.fields(), entry.head.etag_is_ours)?;
    if !entry.condition.valid {
        validators.remove(IF_MODIFIED_SINCE);
    }
    (!validators.is_empty()).then_some(validators)
}

/// Takes out of the request what the cache answers itself, and puts in what revalidates.
pub(super) fn prepare<RequestBody>(
    read: Read,
    subject: Subject,
    mut request: Request<RequestBody>,
    (stored, asked_at): (Option<Arc<Entry>>, Moment),
    why: Forward,
    no_store: bool,
) -> (Errand, Request<RequestBody>) {
    let fields = request.headers().clone();
    let validators = stored
        .as_deref()
        .filter(|_| !read.is_search)
        .and_then(validators);
    let is_ours = validators.is_some() || !(read.is_search || read.policy.forwards_conditionals());
    let conditionals = if is_ours {
        take_conditionals(request.headers_mut())
    } else {
        None
    };
    let revalidates = validators.is_some();
    request
        .headers_mut()
        .extend(validators.into_iter().flatten());
    (
        Errand {
            read,
            subject,
            stored,
            asked_at,
            conditionals,
            answers_conditionals: is_ours,
            revalidates,
            fields,
            why,
            no_store,
            explicit_only: false,
            knows_its_source: None,
            completes: None,
        },
        request,
    )
}
