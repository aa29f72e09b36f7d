"""The console: the pages that the API serves to people, at `/`.

A page reads what the API answers, by `visit.api`, with the key that its reader signed in with. It never reads anything
in another way, so what a role may see is decided in one place.

To add a page:

1. `api/console/NAME.py`: a docstring with the question that the page answers, and `PAGES`, a tuple of `Page`s. The
   function of a page takes a `Visit` and returns `visit.page("NAME.html", …)`. A refusal of the API needs no lines: it
   becomes a page that says what to do.
2. `api/console/templates/NAME.html`: it extends `frame.html`. `macros.html` has what pages share. A block of it can be
   sent alone: `visit.page("NAME.html", block="list", …)`.
3. `api/console/pages.py`: its module in the list.

What every page keeps to:

    address      it says everything that the page shows, so that it can be kept and sent; no state is elsewhere
    reading      works without JavaScript; htmx and `static/app.js` only make it quicker
    htmx         a page that uses it loads it, as `code.html` does; an element with an hx- attribute also needs
                 `hx-nonce="{{ nonce }}"`, or it does nothing
    style        no `style=` and no `<style>`: the policy blocks them; bars and lines are SVG with geometry attributes
    times        `{{ moment|time }}`, which is in UTC and says so, and follows the reader's switch to local time
    what people  `{{ text|plain }}`, which shows characters that cannot be seen; all else is escaped
    wrote
    reads        nothing is read without a click, for a read is recorded: no polling, and no reading ahead
"""
