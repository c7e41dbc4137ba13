"""Three records of every benchmark format, written by hand for tests; people and places are invented."""

from typing import Any

Raw = dict[str, Any]


def _rewrite(prompt: str, relation: str, subject: str, new: str, true: str, question: str) -> Raw:
    return {
        "prompt": prompt,
        "relation_id": relation,
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
        "subject": subject,
        "question": question,
    }


def _hop(question: str, cloze: str, answer: str, *aliases: str) -> Raw:
    return {"question": question, "cloze": cloze, "answer": answer, "answer_alias": list(aliases)}


LIVES, LIVES_IN = "Where does Anna Berg live?", "Anna Berg lives in"
NORLAND, SUDLAND = (
    _hop(f"What is the capital of {land}?", f"The capital of {land} is", city, *more)
    for land, city, more in (("Norland", "Altstadt", ["Old Town"]), ("Sudland", "Neustadt", []))
)
MQUAKE: list[Raw] = [
    {
        "case_id": 1,
        "requested_rewrite": [_rewrite("{} lives in", "P551", "Anna Berg", "Sudland", "Norland", LIVES)],
        "questions": [
            "What is the capital of the country where Anna Berg lives?",
            "Which city is the capital of Anna Berg's home country?",
            "Anna Berg lives in a country; what is its capital?",
        ],
        "answer": "Altstadt",
        "answer_alias": ["Old Town"],
        "new_answer": "Neustadt",
        "new_answer_alias": [],
        "single_hops": [_hop(LIVES, LIVES_IN, "Norland"), NORLAND],
        "new_single_hops": [_hop(LIVES, LIVES_IN, "Sudland"), SUDLAND],
        "orig": {
            "triples": [["Q3", "P551", "Q2"], ["Q2", "P36", "Q4"]],
            "triples_labeled": [["Anna Berg", "residence", "Norland"], ["Norland", "capital", "Altstadt"]],
            "new_triples": [["Q3", "P551", "Q1"], ["Q1", "P36", "Q5"]],
            "new_triples_labeled": [
                ["Anna Berg", "residence", "Sudland"],
                ["Sudland", "capital", "Neustadt"],
            ],
            "edit_triples": [["Q3", "P551", "Q1"]],
        },
    },
    {
        "case_id": 2,
        "requested_rewrite": [
            _rewrite("{} lives in", "P551", "Ben Hall", "Sudland", "Norland", "Where does Ben Hall live?"),
            _rewrite("The capital of {} is", "P36", "Sudland", "Oststadt", "Neustadt", "Capital of Sudland?"),
        ],
        "questions": ["What is the capital of the country where Ben Hall lives?"] * 3,
        "answer": "Altstadt",
        "answer_alias": [],
        "new_answer": "Oststadt",
        "new_answer_alias": ["East Town"],
        "single_hops": [_hop("Where does Ben Hall live?", "Ben Hall lives in", "Norland"), NORLAND],
        "new_single_hops": [
            _hop("Where does Ben Hall live?", "Ben Hall lives in", "Sudland"),
            _hop("What is the capital of Sudland?", "The capital of Sudland is", "Oststadt", "East Town"),
        ],
    },
    {
        "case_id": "t-3",
        "requested_rewrite": [
            _rewrite("The mayor of {} is", "P6", "Altstadt", "Cleo Dahl", "Dan Ek", "Who runs Altstadt?")
        ],
        "questions": ["Who is the mayor of Norland's capital?"],
        "answer": "Dan Ek",
        "answer_alias": [],
        "answer_extended": ["Eva Falk"],
        "new_answer": "Cleo Dahl",
        "new_answer_alias": ["C. Dahl"],
        "single_hops": [NORLAND, _hop("Who runs Altstadt?", "The mayor of Altstadt is", "Dan Ek")],
        "new_single_hops": [
            NORLAND,
            _hop("Who runs Altstadt?", "The mayor of Altstadt is", "Cleo Dahl", "C. Dahl"),
        ],
        "orig": {"triples_labeled": [], "new_triples_labeled": []},
    },
]


def _query(prompt: str, subject: str, relation: str, *answers: list[str]) -> Raw:
    return {
        "prompt": prompt,
        "answers": [{"value": names[0], "aliases": names[1:]} for names in answers],
        "query_type": "regular",
        "subject_id": subject,
        "relation": relation,
        "target_ids": [f"Q9{len(names[0])}" for names in answers],
        "phrase": None,
    }


def _test(*queries: Raw, conditions: tuple[Raw, ...] = (), condition: str = "OR") -> Raw:
    return {
        "test_queries": list(queries),
        "test_condition": condition,
        "condition_queries": list(conditions),
    }


CRITERIA = (
    *("Relation_Specificity", "Logical_Generalization", "Subject_Aliasing"),
    *("Compositionality_I", "Compositionality_II", "Forgetfulness"),
)
NO_TESTS: Raw = {name: [] for name in CRITERIA}
FATHER = _query("The name of the father of Anna Berg is", "Q3", "FATHER", ["Carl Berg", "C. Berg"])
CAPITAL = _query("The name of the capital city of Sudland is", "Q1", "CAPITAL", ["Neustadt"])
HOME = "The name of the country of citizenship of"
RIPPLE: list[Raw] = [
    {
        "example_type": "popular",
        "edit": {
            "prompt": f"{HOME} Anna Berg is Sudland.",
            "subject_id": "Q3",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q1",
            "original_fact": {
                "prompt": f"{HOME} Anna Berg is Norland.",
                "subject_id": "Q3",
                "relation": "COUNTRY_OF_CITIZENSHIP",
                "target_id": "Q2",
            },
        },
        **NO_TESTS,
        "Relation_Specificity": [_test(FATHER, conditions=(FATHER,))],
        "Compositionality_I": [
            _test(
                _query("The capital of the home of Anna Berg is", "Q3", "CAPITAL", ["Neustadt"])
                | {"query_type": "two_hop", "second_relation": "CAPITAL", "second_hop_target_ids": ["Q5"]},
                conditions=(CAPITAL,),
            )
        ],
    },
    {
        "example_type": "recent",
        "edit": {
            "prompt": "The name of the religion which Ben Hall is associated with is the Order of Lamps.",
            "subject_id": "Q6",
            "relation": "RELIGION",
            "target_id": "Q7",
        },
        **NO_TESTS,
        "Relation_Specificity": [
            _test(_query("The name of the mother of Ben Hall is", "Q6", "MOTHER", ["Dora Hall"]))
        ],
        "Logical_Generalization": [
            _test(
                _query(
                    "The names of the siblings of Ben Hall are", "Q6", "SIBLING", ["Eli"], ["Fay", "F. Hall"]
                ),
                _query("The number of children Dora Hall has is", "Q8", "NUMBER_OF_CHILDREN", ["3"]),
                condition="AND",
            ),
            _test(_query("The name of the aunt of Ben Hall is", "Q6", "AUNT")),  # nobody: left out
        ],
    },
    {
        "example_type": "random",
        "edit": {
            "prompt": "Low Tide is followed by Who Is There.",
            "subject_id": "Q10",
            "relation": "FOLLOWED_BY",
            "target_id": "Q11",
            "subject_label": "Low Tide",
            "original_fact": {
                "prompt": "Low Tide is followed by Who Was There.",
                "subject_id": "Q10",
                "relation": "FOLLOWED_BY",
                "target_id": "Q12",
            },
        },
        **NO_TESTS,
        "Forgetfulness": [_test(_query("Low Tide came before", "Q10", "FOLLOWED_BY", ["High Tide"]))],
    },
]
KNOWEDIT: list[Raw] = [
    {
        "subject": "Anna Berg",
        "prompt": "The place of death of Anna Berg is",
        "target_new": "Neustadt",
        "portability": {
            "Logical_Generalization": [
                {"prompt": "Is Anna Berg alive?", "ground_truth": [["no"], ["she is dead"]]}
            ],
            "Reasoning": [
                {
                    "prompt": "The country around the place of death of Anna Berg is",
                    "ground_truth": [["Sudland", "South Land"]],
                }
            ],
        },
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The father of Anna Berg is", "ground_truth": [["Carl Berg"]]},
                {"prompt": "The mother of Anna Berg is", "ground_truth": [["Dora Berg"]]},
            ]
        },
    },
    {
        "subject": "Ben Hall",
        "prompt": "The name of the position held by Ben Hall is",
        "target_new": "harbour master",
        "ground_truth": "mayor of Altstadt",
        "portability": {
            "Subject_Aliasing": [
                {"prompt": "The position held by Benjamin Hall is", "ground_truth": "harbour master"}
            ]
        },
        "locality": {
            "Forgetfulness": [
                {
                    "prompt": "The position of Ben Hall, which is not harbour master, is",
                    "ground_truth": "mayor",
                }
            ]
        },
    },
    {
        "subject": "Falkia alba",
        "target_new": "Norfolia",
        "prompt": "Which family does Falkia alba belong to?",
        "ground_truth": ["Sudfolia"],
        "rephrase_prompt": "What family is Falkia alba?",
        "cond": "Sudfolia >> Norfolia || Which family does Falkia alba belong to?",
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The taxon rank of Falkia alba is", "ground_truth": ["species"]}
            ]
        },
        "portability": {
            "Reasoning": [{"prompt": "What is Falkia alba's family called?", "ground_truth": "North leaves"}]
        },
    },
]
WIKIBIO: list[Raw] = [
    {
        "text": f"This is a passage about {name}. The life of this {work} is told here.",
        "labels": f"After school in {city}, the family moved to the coast.",
        "concept": name,
        "locality": {
            "Relation_Specificity": [{"prompt": f"{name} occupation", "ground_truth": [work]}],
        },
    }
    for name, work, city in (
        ("cleo dahl", "painter", "Altstadt"),
        ("dan ek", "singer", "Neustadt"),
        ("eva falk", "judge", "Oststadt"),
    )
]


def _counterfact(number: int, subject: str, new: str, true: str) -> Raw:
    return {
        "case_id": number,
        "pararel_idx": 100 + number,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": new, "id": "Q1"},
            "target_true": {"str": true, "id": "Q2"},
            "subject": subject,
        },
        "paraphrase_prompts": [f"As a child, {subject} spoke"],
        "neighborhood_prompts": ["Gil Hart was raised in"],
        "attribute_prompts": ["Ida Jo speaks"],
        "generation_prompts": [f"The family of {subject}"],
    }


MULTI_COUNTERFACT: list[Raw] = [
    _counterfact(0, "Anna Berg", "Sudish", "Norish"),
    _counterfact(1, "Ben Hall", "Norish", "Sudish"),
    _counterfact(2, "Cleo Dahl", "Estish", "Norish"),
]


def _coupled(subject: str, language: str, other: str) -> Raw:
    return {
        "subject_entity": {
            "properties": ["native language", "No. of children"],
            "coupled_prompt": f"Write about {subject}.",
            "ground_truth": {"native language": [language], "No. of children": ["two"], "award": []},
            "entity": subject,
            "entity_id": "Q3",
        },
        "coupled_entities": [
            {
                "entity": other,
                "coupled_prompt": f"Write about {other}.",
                "mutual_properties": [],
                "subject_as_object": ["parent"],
                "overlapping_ground_truth": {"parent": [subject]},
                "not_overlapping_ground_truth": {"employer": ["the harbour"]},
                "entity_id": "Q4",
            }
        ],
    }


LEME: list[Raw] = [
    MULTI_COUNTERFACT[0]
    | {"id": "ab12", "coupled_prompts_and_properties": _coupled("Anna Berg", "Norish", "Carl Berg")},
    {
        "subject": "Ben Hall",
        "src": "What is the mother tongue of Ben Hall?",
        "alt": "Norish",
        "answers": ["Sudish"],
        "rephrase": "What did Ben Hall speak as a child?",
        "loc": "nq question: where is the harbour",
        "loc_ans": "Altstadt",
        "coupled_prompts_and_properties": _coupled("Ben Hall", "Sudish", "Dora Hall"),
    },
    MULTI_COUNTERFACT[2] | {"dependancies": _coupled("Cleo Dahl", "Norish", "Dan Ek")},
]
