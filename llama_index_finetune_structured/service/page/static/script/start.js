// -- the start, when all of the above is there --

addEventListener("hashchange", route);
route();
