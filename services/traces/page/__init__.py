"""The page: what the store holds, for people with a browser. Static files of ours, and JSON.

:mod:`services.traces.page.source`     what the page shows, as an interface
:mod:`services.traces.page.documents`  its JSON
:mod:`services.traces.page.server`     the paths, and who may ask
``static``                             the page itself: HTML, CSS and modules of JavaScript, used as they are
"""
